"""Turn a row into the sequences that the teacher reads: render, tokenise once, cut to fit."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from logitstore.capture.sequences.windows import Limits, TeacherSequence, sequences_of_row
from logitstore.records import SequenceText
from logitstore.rows.renderer import UNWRITTEN, Rendered, Renderer

#: What a turn is called that no token ends.
ENDLESS = "without_end"


class RowReader:
    """Turns a row into sequences.

    Args:
        render: Turns a row of any kind into segments and tokens.
        limits: How long a sequence may be, and what becomes of a longer row.
        asked: Adds the questions of a student's boundaries to a sequence; None: there are none.
    """

    def __init__(
        self,
        render: Renderer,
        limits: Limits,
        asked: Callable[[TeacherSequence], TeacherSequence] | None = None,
    ) -> None:
        self.render, self.limits, self._asked = render, limits, asked
        #: Of the rows read since this was cleared: supervised turns that are not as they should be.
        self.turns: Counter[str] = Counter()
        self.rows, self.tokenizer = render.rows, render.tokenizer

    def whole(self, row: int) -> TeacherSequence:
        """Return the row as one sequence, however long.

        Raises:
            InputError: The row cannot be read or rendered.
        """
        rendered = self.render(row)
        self.turns += Counter({ENDLESS: rendered.endless, UNWRITTEN: rendered.unwritten})
        return _in_one_piece(row, rendered)

    def sequences(self, row: int) -> list[TeacherSequence]:
        """Return the row as one sequence if it fits, else as the limits say; at least one."""
        return self._cut(self.whole(row))

    def cut(self, row: int, rendered: Rendered) -> list[TeacherSequence]:
        """Cut a row that is rendered already."""
        return self._cut(_in_one_piece(row, rendered))

    def _cut(self, whole: TeacherSequence) -> list[TeacherSequence]:
        # A row that brings its own BOS has it in every window, one without has it in none.
        limits = replace(self.limits, prefix_length=whole.prefix_length)
        sequences = sequences_of_row(whole, limits)
        return sequences if self._asked is None else list(map(self._asked, sequences))


def _in_one_piece(row: int, rendered: Rendered) -> TeacherSequence:
    status = rendered.tokens.status
    line = SequenceText(row, 0, status, rendered.segments, messages=rendered.messages)
    return TeacherSequence(line, rendered.tokens, rendered.prefix_length)
