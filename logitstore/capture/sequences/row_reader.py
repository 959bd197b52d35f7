"""Rows as the teacher reads them: rendered, tokenised once, and cut to what fits."""

from dataclasses import replace

from logitstore.capture.sequences.windows import Limits, TeacherSequence, sequences_of_row
from logitstore.records import SequenceText
from logitstore.rows.renderer import Rendered, Renderer


class RowReader:
    """Makes the sequences of a row.

    Args:
        render: Makes segments and tokens of a row, of whatever kind.
        limits: How long a sequence may be, and what becomes of a longer row.
    """

    def __init__(self, render: Renderer, limits: Limits) -> None:
        self.render, self.limits = render, limits
        self.rows, self.tokenizer = render.rows, render.tokenizer

    def whole(self, row: int) -> TeacherSequence:
        """The row in one piece, however long.

        Raises:
            InputError: It cannot be read or rendered.
        """
        return _in_one_piece(row, self.render(row))

    def sequences(self, row: int) -> list[TeacherSequence]:
        """The row in one piece if it fits, else as the limits say; at least one, in order."""
        return self._cut(self.whole(row))

    def cut(self, row: int, found: Rendered) -> list[TeacherSequence]:
        """The same of a row that is rendered already."""
        return self._cut(_in_one_piece(row, found))

    def _cut(self, whole: TeacherSequence) -> list[TeacherSequence]:
        # A row that brings its own BOS has it in every window, one without has it in none.
        return sequences_of_row(whole, replace(self.limits, prefix_length=whole.prefix_length))


def _in_one_piece(row: int, found: Rendered) -> TeacherSequence:
    line = SequenceText(row, 0, found.tokens.status, found.segments, messages=found.messages)
    return TeacherSequence(line, found.tokens, found.prefix_length)
