"""Turn a student's boundaries into questions that a teacher can answer.

At a boundary the question is: what would the teacher say after just these bytes? With the
teacher's tokens |und|erst|and| and the student's |unders|tand|, the second boundary lies inside
`erst`:

    context      the teacher's tokens that end before the boundary: `und`
    remainder    the bytes between them and the boundary, tokenised on their own: `ers`
    the answer   the teacher's distribution behind `und` `ers`

Where one of the teacher's tokens begins at the boundary, there is no remainder, and the answer is
the record that the teacher has there anyway. The end of a text or turn is answered by the
teacher's own record of that end.

The token of an answer, whose log-probability is stored with it, is the first token of the teacher's
tokenisation of the text from the boundary on (tokenised on its own, too, where the boundary lies
inside a token).

No question is asked, so the label has no record, where nothing stands before the boundary; where
the student's context is another (its template writes other text before a token that crosses into
supervised text); at an end that the teacher does not have; for a token without bytes; behind the
teacher's last token; and where context and remainder would be more than the teacher can read.

Shape legend: n = questions of a sequence, T = the teacher's tokens of it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from logitstore.capture.boundaries.student import Labels, Student, heads_of
from logitstore.capture.sequences.questions import Branch, Questions
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.text.middle import MiddleTokenizer
from logitstore.text.tokenizer import ByteTokenizer

#: Bytes of text from a boundary on that decide its first token: more than most words have.
_REST_BYTES = 32


class _Answer(NamedTuple):
    record: int
    token_id: int
    branch: Branch | None = None


class Boundaries:
    """Asks a teacher at one student's boundaries.

    Args:
        student: The student.
        teacher: The teacher's tokenizer, by bytes.
        middle: The same, for pieces of a text.
        limit: Tokens that the teacher can read at once; None: no limit.
        where: Names a row in messages.
    """

    def __init__(
        self,
        student: Student,
        teacher: ByteTokenizer,
        middle: MiddleTokenizer,
        limit: int | None,
        where: Callable[[int], str],
    ) -> None:
        self.student, self._teacher, self._middle = student, teacher, middle
        self._limit, self._where = limit, where

    def asked(self, sequence: TeacherSequence) -> TeacherSequence:
        """Return the sequence with the questions at the student's boundaries."""
        if not sequence.records:
            return replace(sequence, questions=Questions.none())
        labels = self.student.labels(sequence.line, self._where(sequence.line.row))
        if isinstance(labels, str):
            return replace(sequence, questions=Questions.none(labels))
        return replace(sequence, questions=self._questions(sequence, labels))

    def _questions(self, sequence: TeacherSequence, labels: Labels) -> Questions:
        places = _Tokens(sequence, self._teacher)
        events = places.events(labels)
        answers = [
            places.own(events[i]) if labels.is_eos[i] else self._answer(places, int(place))
            for i, place in enumerate(labels.places)
        ]
        kept = [i for i, answer in enumerate(answers) if answer is not None]
        found = [answer for answer in answers if answer is not None]
        start = sequence.line.supervised_start
        return Questions(
            status=None,
            labels=len(answers),
            byte_starts=labels.starts[kept] + start,
            byte_lengths=labels.lengths[kept],
            token_ids=np.array([answer.token_id for answer in found], np.int64),
            records=np.array([answer.record for answer in found], np.int64),
            branches=tuple(answer.branch for answer in found if answer.branch is not None),
        )

    def _answer(self, tokens: "_Tokens", place: int) -> _Answer | None:
        """Find what answers the question at a byte of the teacher's text; None: nothing can."""
        if not 0 <= place < tokens.end:
            return None
        context = int(np.searchsorted(tokens.ends, place, side="right"))
        known = int(tokens.ends[context - 1]) if context else 0
        is_start = tokens.starts[context] == place
        begins = tokens.adds_space(context)
        piece = b"" if is_start else tokens.data[known:place]
        remainder = self._middle.ids(piece, begins) if piece else ()
        if remainder is None:
            return None
        token_id: int | None = int(tokens.ids[context])
        if not remainder:
            if tokens.record[context] >= 0:
                return tokens.own(context)
            if not context:
                return None
            branch = Branch(context - 1, (int(tokens.ids[context - 1]),))
        else:
            branch = Branch(context, remainder)
            token_id = self._middle.first(tokens.rest(place))
        if token_id is None or not self._fits(branch):
            return None
        return _Answer(-1, token_id, branch)

    def _fits(self, branch: Branch) -> bool:
        return self._limit is None or branch.context + len(branch.ids) <= self._limit


class _Tokens:
    """The teacher's tokens of a sequence, and where they lie in its line's text.

    Attributes:
        ids, starts, ends: (T,) the tokens and their bytes in `data`.
        record: (T,) the number of the token's record; -1 where it has none.
        data: The line's text.
        end: Byte where the teacher's last token with bytes ends.
    """

    def __init__(self, sequence: TeacherSequence, teacher: ByteTokenizer) -> None:
        text = sequence.text
        self.ids = text.token_ids
        offset = sequence.text_offset  # the prefix stands before the first byte
        local = replace(
            text,
            text_starts=np.maximum(text.text_starts - offset, 0),
            text_ends=np.maximum(text.text_ends - offset, 0),
        )
        # A space of the chat template in front of an answer belongs to the template.
        heads = text.heads - heads_of(sequence.line, sequence.line.segments, local, teacher)
        self.starts = local.text_starts + heads
        self.ends = local.text_ends
        self.record = np.where(text.has_record, np.cumsum(text.has_record) - 1, -1)
        self.data = "".join(segment.text for segment in sequence.line.segments).encode()
        self.end = int(self.ends[self.starts < self.ends].max(initial=0))
        self._event_places = np.flatnonzero(text.is_eos & text.has_record)
        self._event_starts = text.byte_starts[self._event_places] - sequence.line.supervised_start
        self._has_added_space = text.has_added_space

    def own(self, token: int) -> _Answer | None:
        """Answer with the record of a token; None for no token."""
        return None if token < 0 else _Answer(int(self.record[token]), int(self.ids[token]))

    def adds_space(self, token: int) -> bool:
        """Tell whether a token writes a space that the text does not have."""
        return bool(self._has_added_space[token])

    def rest(self, place: int) -> bytes:
        """Return the text from a byte on, up to a token's end, as far as it decides the first."""
        stop = int(np.searchsorted(self.ends, min(place + _REST_BYTES, self.end)))
        return self.data[place : int(self.ends[stop])]

    def events(self, labels: Labels) -> list[int]:
        """Find the teacher's token for each label that is an end: of several, j-th for j-th; -1."""
        waiting: dict[int, list[int]] = {}
        for token, start in zip(self._event_places, self._event_starts, strict=True):
            waiting.setdefault(int(start), []).append(int(token))
        found = []
        for start, is_eos in zip(labels.starts, labels.is_eos, strict=True):
            left = waiting.get(int(start), []) if is_eos else []
            found.append(left.pop(0) if left else -1)
        return found
