"""Hold what a student's boundaries ask of the teacher in one sequence.

`logitstore.capture.boundaries.asking` makes the questions, and says what each of them means.

Shape legend: n = questions of a sequence.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from logitstore.format.numpy_types import I64


class Branch(NamedTuple):
    """Tokens that the teacher reads beside its own, behind some of them.

    Attributes:
        context: How many of the row's tokens it sees.
        ids: The tokens; the last one's distribution is the answer.
    """

    context: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Questions:
    """The questions at one student's boundaries in one sequence.

    Attributes:
        status: That of the line in the store of answers; None: as the sequence has it.
        labels: Supervised tokens of the student, those without a question too.
        byte_starts, byte_lengths: (n,) place of each token in the row's supervised bytes.
        token_ids: (n,) the teacher's first token from there on.
        records: (n,) which record of the sequence answers it; -1: the next branch.
        branches: One for each question that no record answers, in order.
    """

    status: str | None
    labels: int
    byte_starts: I64
    byte_lengths: I64
    token_ids: I64
    records: I64
    branches: tuple[Branch, ...]

    @classmethod
    def none(cls, status: str | None = None, labels: int = 0) -> Self:
        """Make an empty set of questions."""
        nothing = np.zeros(0, np.int64)
        return cls(status, labels, nothing, nothing, nothing, nothing, ())

    @property
    def extra_tokens(self) -> int:
        """Count the tokens that the teacher reads beside those of the sequence."""
        return sum(len(branch.ids) for branch in self.branches)

    def __len__(self) -> int:
        return len(self.records)
