"""Count what a student cannot use of a store, and why, before it is trained.

Rows are lost twice: the capture left some without records (the statuses of the store), and of the
others the student cannot read some: its chat template writes another text, refuses the
conversation, or nothing is left within its most tokens. Rendering and tokenising is all that this
takes, so all sequences are looked at up to `MOST_LOOKED_AT`, and beyond it as many, spread evenly
and always the same.

A row that is changed by the template is shown with the first difference of both renderings:

    the store has 'the ⟦old⟧ river', the template writes 'the ⟦OLD⟧ river'
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from distill.data.dataset import StoreDataset
from distill.student.odd_turns import OddTurns, Turns
from distill.student.text import REFUSED
from logitstore.console.counts import counted
from logitstore.console.left_out import LeftOut, is_surely_more, left_out_text, lost
from logitstore.console.progress import progress
from logitstore.console.terminal import printable
from logitstore.errors import InputError
from logitstore.format.statuses import left_out_of, reason_of
from logitstore.records import SequenceText
from logitstore.text.conversation import Conversation

#: Sequences that are looked at before training at most. Each of 270 tokens took 4 to 5 ms of a slow
#: core, so these are half a minute; a share of 5 % is known to within 1 % by them.
MOST_LOOKED_AT = 5_000
#: Of a store in a bucket, and in how many blocks of neighbours.
_MOST_OF_BUCKET, _BLOCKS = 2_000, 8
_SHOWN = 20  # characters of a difference, and of what stands beside it
_VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


class Usable(NamedTuple):
    """What a student can use of a store: numbers of sequences, and why not of the others.

    Attributes:
        sequences: In the store.
        with_records: Of these, with a record.
        looked_at: Of these, that the student tried to read.
        used: Of these, that it can use.
        by_capture: What the capture left without records.
        by_student: What the student cannot use of what was looked at.
        turns: Turns that it does not learn whole, of those of the used conversations.
        example: One row that the student loses, in words; empty if it loses none.
    """

    sequences: int
    with_records: int
    looked_at: int
    used: int
    by_capture: list[LeftOut]
    by_student: list[LeftOut]
    turns: list[LeftOut]
    example: str

    @property
    def is_all(self) -> bool:
        """Whether the student can use all of the store that has records."""
        return not self.lost and not self.turns

    @property
    def lost(self) -> int:
        """The number of sequences that the student cannot use, of those looked at."""
        return lost(self.by_student)

    def facts(self) -> dict[str, Any]:
        """Describe it as JSON."""
        return {
            "sequences": self.sequences,
            "with_records": self.with_records,
            "looked_at": self.looked_at,
            "used": self.used,
            "by_capture": [each.facts() for each in self.by_capture],
            "by_student": [each.facts() for each in self.by_student],
            "turns": [each.facts() for each in self.turns],
            "example": self.example,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Read what `facts` wrote."""
        sides = {
            side: [LeftOut.from_facts(each) for each in facts[side]]
            for side in ("by_capture", "by_student", "turns")
        }
        return cls(**{**facts, **sides})

    def text(self) -> str:
        """Write the table of what is not used, for people; empty if all is used, and whole."""
        parts = [left_out_text(self.by_capture, "sequences", ", by the capture")]
        seen = "" if self.looked_at == self.with_records else " that were looked at"
        parts.append(left_out_text(self.by_student, "sequences", f"{seen}, by this student"))
        parts.append(left_out_text(self.turns, "turns", f"{seen}, for this student", "not whole"))
        return "\n".join(part for part in parts if part)


class Looker:
    """Collects which sequences a student cannot use, and why.

    Args:
        data: The store as the student reads it.
    """

    def __init__(self, data: StoreDataset) -> None:
        self._data, self._seen = data, 0
        self._counts: Counter[str] = Counter()
        self._first: dict[str, tuple[int, str]] = {}
        self._turns = OddTurns()

    def look(self, index: int) -> None:
        """Look at a sequence of the dataset."""
        self._seen += 1
        read, line = self._data.read_alone(index)
        if read.tokens is not None:
            self._turns.add(read.turns, line.row)
            return
        self._counts[read.reason] += 1
        if read.reason not in self._first:
            self._first[read.reason] = (line.row, read.refusal or _difference(self._data, line))

    def count_used(self, line: SequenceText, turns: Turns) -> None:
        """Count a sequence that is known to be of use, and its turns."""
        self._seen += 1
        self._turns.add(turns, line.row)

    def found(self) -> Usable:
        """Say what was found."""
        by_student = [
            LeftOut(reason, n, self._seen, self._first[reason][0], *reason_of(reason))
            for reason, n in self._counts.most_common()
        ]
        examples = (self._first[each.reason][1] for each in by_student)
        return Usable(
            sequences=len(self._data.store),
            with_records=len(self._data),
            looked_at=self._seen,
            used=self._seen - self._counts.total(),
            by_capture=self._by_capture(),
            by_student=by_student,
            turns=self._turns.found(),
            example=next(filter(None, examples), ""),
        )

    def _by_capture(self) -> list[LeftOut]:
        """List what has no records; not a line that has some, with a status that nobody reads."""
        store = self._data.store
        found = left_out_of(store.statuses, store.first_rows())
        return [each for each in found if each.reason not in self._counts]


def spread(count: int, most: int | None) -> list[int]:
    """Choose numbers below `count`, evenly spread: all of them, or `most`."""
    chosen = count if most is None else min(most, count)
    numbers: list[int] = np.unique(np.linspace(0, count - 1, chosen).astype(int)).tolist()
    return numbers


def in_blocks(count: int, most: int, blocks: int) -> list[int]:
    """Choose `most` numbers below `count` in some blocks of neighbours, evenly spread."""
    size = -(-most // blocks)
    starts = spread(max(count - size + 1, 1), blocks)
    return sorted({n for start in starts for n in range(start, min(start + size, count))})


def usable(data: StoreDataset, most: int | None = None) -> Usable:
    """Count what the student can use of a store, and why it cannot use the rest.

    Args:
        data: The store as the student reads it.
        most: The most sequences to look at; None: all.
    """
    looker = Looker(data)
    chosen = spread(len(data), most)
    if most is not None and getattr(data.store.path, "is_remote", False):
        # Each shard that is touched is fetched whole.
        chosen = in_blocks(len(data), min(most, _MOST_OF_BUCKET), _BLOCKS)
    with progress(len(chosen), "look", "sequences") as shown:
        for index in chosen:
            looker.look(index)
            shown.update(1)
    return looker.found()


def check_usable(found: Usable, path: object, max_lost: float, flag: str = "--store") -> None:
    """Reject a store of which a student would lose everything, or more than it may.

    Args:
        found: What the student can use.
        path: The store, for messages.
        max_lost: The largest share that may be lost, 0 to 1.
        flag: What named the store, for messages.

    Raises:
        InputError: Names the reason, a row with the difference of both texts, and what to do.
    """
    seen = found.looked_at
    is_too_much = is_surely_more(found.lost, seen, found.with_records, max_lost)
    if found.used and not is_too_much:
        return
    chief = found.by_student[0]
    if not found.used and chief.reason == REFUSED and chief.count == seen:
        raise InputError(found.example, kind="lost-rows")
    what = f"{found.lost:,} of {counted(seen, 'sequence')}" + (
        "" if seen == found.with_records else f" that were looked at (of {found.with_records:,})"
    )
    limit = f", more than --max_lost {max_lost:g}" if found.used else ""
    step = f" Or add --max_lost {_enough(found)}." if found.used else ""
    where = "" if flag == "--store" else f"{flag} "
    example = f" ({found.example})" if found.example else f" (row {chief.first_row:,})"
    raise InputError(
        f"{where}{path}: this student cannot use {what}{limit}: {chief.count:,} "
        f"{chief.reason}, {chief.why}{example}. {chief.step}{step}",
        kind="lost-rows",
    )


def _enough(found: Usable) -> str:
    """Write the share that is lost, rounded up."""
    return f"{min(1.0, np.ceil(100 * found.lost / found.looked_at - 1e-9) / 100):g}"


def _difference(data: StoreDataset, line: SequenceText) -> str:
    """Show where the student's template writes another text than the store has."""
    template = data.reader.template
    if line.messages is None or template is None:
        return ""
    where = f"{data.store.path}: row {line.row:,}"
    segments = template.segments(Conversation.from_json(line.messages, where), where)
    written = "".join(s.text for s in segments if s.supervised).encode()
    own, low = line.supervised_bytes, line.supervised_start
    if line.status == "split":
        written = written[low : low + len(own)]
    if written == own:
        return ""
    ours, theirs = visible_difference(own.decode(), written.decode(errors="replace"))
    return f"row {line.row:,}: the store has '{ours}', the template writes '{theirs}'"


def visible_difference(one: str, other: str) -> tuple[str, str]:
    """Show two texts around what differs, which stands in ⟦ ⟧.

    White space is visible (`·⏎⇥␍`) in the brackets, and nothing can move a terminal's cursor. Of
    long texts a few words are shown.
    """
    start = _common(one, other)
    same = _common(one[start:][::-1], other[start:][::-1])
    return _shown(one, start, len(one) - same), _shown(other, start, len(other) - same)


def _common(one: str, other: str) -> int:
    """Count the characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _shown(text: str, start: int, stop: int) -> str:
    before, after = text[:start][-_SHOWN:], text[stop:][:_SHOWN]
    inner = text[start:stop]
    cut = "…" if len(inner) > _SHOWN else ""
    return (
        ("…" if start > _SHOWN else "")
        + printable(before)
        + f"⟦{printable(inner[:_SHOWN].translate(_VISIBLE))}{cut}⟧"
        + printable(after)
        + ("…" if len(text) - stop > _SHOWN else "")
    )


def left_out_lines(found: Usable) -> Sequence[str]:
    """Write the table, and the example below it, as lines; none if all is used."""
    text = found.text()
    return [*text.split("\n"), *([f"    {found.example}"] if found.example else [])] if text else []
