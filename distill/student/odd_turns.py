"""Turns of conversations that a student's chat template does not write as they should be.

A student does not lose such a row, but learns less from it than it seems: not when to stop, where
no token ends a turn; nothing of a turn whose tool calls are not written. So they are counted in
turns, beside the table of the rows that are not used.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from logitstore.console.left_out import LeftOut
from logitstore.format.statuses import Reason

#: What such turns are called; the same in every version.
ENDLESS, UNWRITTEN = "turns_without_end", "turns_without_calls"

_REASONS: Mapping[str, Reason] = {
    ENDLESS: Reason(
        "the student's chat template writes no token that ends them, so the student does not learn "
        "from them when to stop",
        "Give a template that ends every turn, with --chat_template_path.",
    ),
    UNWRITTEN: Reason(
        "the student's chat template does not write their tool calls, so they are left out",
        "Give a template that writes tool calls, with --chat_template_path.",
    ),
}


class Turns(NamedTuple):
    """Numbers of supervised turns in a line.

    Attributes:
        total: All.
        endless: Of these, without an end.
        unwritten: Of these, left out, as their tool calls are not written.
    """

    total: int = 0
    endless: int = 0
    unwritten: int = 0


class OddTurns:
    """Counts odd turns in line after line."""

    def __init__(self) -> None:
        self._total = 0
        self._counts: Counter[str] = Counter()
        self._first_rows: dict[str, int] = {}

    def add(self, turns: Turns, row: int) -> None:
        """Count the turns of a line of a row."""
        self._total += turns.total
        for kind, count in ((ENDLESS, turns.endless), (UNWRITTEN, turns.unwritten)):
            if count:
                self._counts[kind] += count
                self._first_rows.setdefault(kind, row)

    def found(self) -> list[LeftOut]:
        """List what was found, the most frequent kind first; empty if all turns are whole."""
        return [
            LeftOut(kind, count, self._total, self._first_rows[kind], *_REASONS[kind])
            for kind, count in self._counts.most_common()
        ]
