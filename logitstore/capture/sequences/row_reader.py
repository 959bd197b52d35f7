"""Turn a row into the sequences that the teacher reads: render, tokenise once, cut to fit."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import numpy as np

from logitstore.capture.sequences.windows import Limits, TeacherSequence, sequences_of_row
from logitstore.records import SequenceText
from logitstore.rows.dataset import Rows
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

    def over(self, rows: Rows) -> Self:
        """Return the same reader for other rows, those of a part of the dataset."""
        return type(self)(replace(self.render, rows=rows), self.limits, self._asked)

    def wholes(self, row: int) -> list[TeacherSequence]:
        """Return each document of the row as one sequence, however long; mostly there is one.

        Raises:
            InputError: The row cannot be read or rendered.
        """
        documents = self.render.documents(row)
        for rendered in documents:
            self.turns += Counter({ENDLESS: rendered.endless, UNWRITTEN: rendered.unwritten})
        return [_in_one_piece(row, rendered) for rendered in documents]

    def sequences(self, row: int) -> list[TeacherSequence]:
        """Return the row as one sequence if it fits, else as the limits say; at least one.

        Of several documents each is cut by itself; the sequences of all are the row's parts.
        """
        parts: list[TeacherSequence] = []
        supervised_bytes = 0
        for whole in self.wholes(row):
            parts += [
                _as_part(sequence, len(parts) + i, supervised_bytes)
                for i, sequence in enumerate(self._cut(whole))
            ]
            supervised_bytes += len(whole.line.supervised_bytes)
        return self._with_questions(parts)

    def cut(self, row: int, rendered: Rendered) -> list[TeacherSequence]:
        """Cut a row that is rendered already."""
        return self._with_questions(self._cut(_in_one_piece(row, rendered)))

    def _cut(self, whole: TeacherSequence) -> list[TeacherSequence]:
        # A row that brings its own BOS has it in every window, one without has it in none.
        limits = replace(self.limits, prefix_length=whole.prefix_length)
        return sequences_of_row(whole, limits)

    def _with_questions(self, sequences: list[TeacherSequence]) -> list[TeacherSequence]:
        return sequences if self._asked is None else list(map(self._asked, sequences))


def _in_one_piece(row: int, rendered: Rendered) -> TeacherSequence:
    status = rendered.tokens.status
    line = SequenceText(row, 0, status, rendered.segments, messages=rendered.messages)
    return TeacherSequence(line, rendered.tokens, rendered.prefix_length)


def _as_part(sequence: TeacherSequence, part: int, bytes_before: int) -> TeacherSequence:
    """Move a sequence behind those of the documents before its own: its number and its places."""
    line, text = sequence.line, sequence.text
    if part == line.part and not bytes_before:
        return sequence
    starts = np.where(text.has_record, text.byte_starts + bytes_before, 0)
    line = line._replace(part=part, supervised_start=line.supervised_start + bytes_before)
    return replace(sequence, line=line, text=replace(text, byte_starts=starts))
