"""Say what the questions at a student's boundaries cost, from a sample of rows, and check them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from logitstore.capture.boundaries.student import CHANGED, Student
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.console.progress import byte_count
from logitstore.errors import InputError


@dataclass(frozen=True)
class BoundaryCost:
    """What the boundaries of a student add to a capture.

    Attributes:
        student: Its name.
        labels: Supervised tokens of the student.
        records: Of these, those with a record.
        inside: Of these, those that begin inside one of the teacher's tokens, or at one that has
            no record of its own: the teacher reads further tokens for them.
        tokens_factor: All tokens that the teacher reads, to those of its own.
        extra_tokens: Tokens that the teacher reads besides its own.
        file_bytes: Bytes by which the store grows for it.
    """

    student: str
    labels: float
    records: float
    inside: float
    tokens_factor: float
    extra_tokens: float
    file_bytes: float = 0.0

    @classmethod
    def of(cls, student: Student, sequences: Sequence[TeacherSequence], scale: float) -> Self:
        """Count what some sequences ask, and scale it to a whole capture."""
        asked = [s.questions for s in sequences if s.questions is not None]
        own = sum(s.length for s in sequences if s.records)
        extra = sum(q.extra_tokens for q in asked)
        return cls(
            student.name,
            labels=scale * sum(q.labels for q in asked),
            records=scale * sum(map(len, asked)),
            inside=scale * sum(len(q.branches) for q in asked),
            tokens_factor=(own + extra) / max(own, 1),
            extra_tokens=scale * extra,
        )

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON."""
        rounded = ("labels", "records", "inside", "extra_tokens", "file_bytes")
        return asdict(self) | {name: round(getattr(self, name)) for name in rounded}

    def __str__(self) -> str:
        return (
            f"boundaries of {self.student}: about {self.labels:,.0f} labels, "
            f"{self.records / max(self.labels, 1):.1%} of them with a record, "
            f"{self.inside / max(self.labels, 1):.0%} inside the teacher's tokens; the teacher "
            f"reads {self.tokens_factor:.2f} x its tokens ({self.extra_tokens:,.0f} more); "
            f"{byte_count(self.file_bytes)} of the bytes above"
        )


def check_asked(student: Student, sequences: Sequence[TeacherSequence]) -> None:
    """Check that a student can be asked about in at least one of some sequences.

    Raises:
        InputError: Its tokens cannot be placed in any, or its chat template changes all.
    """
    statuses = Counter(
        s.questions.status for s in sequences if s.records and s.questions is not None
    )
    if not statuses or statuses[None]:
        return
    most = statuses.most_common(1)[0][0]
    why = "its tokenizer does not say where its tokens lie"
    if most == CHANGED:
        why = "its chat template changes the supervised text"
    raise InputError(
        f"--boundaries-of {student.name}: {why}, in all {statuses.total():,} sequences that were "
        "looked at, so no boundary is known. Name another student, or leave --boundaries-of out."
    )
