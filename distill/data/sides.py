"""A sequence of a store as both sides tokenise it, and what training asks of it."""

from typing import NamedTuple

import numpy as np

from distill.alignment.align import Alignment, Spans
from distill.alignment.cuts import Bools
from distill.alignment.map_entries import VocabularyMap
from distill.alignment.ways import answers_of
from distill.data.targets import Ints, Pairs
from distill.student.odd_turns import Turns
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.tokenized_text import TokenizedText


class BothSides(NamedTuple):
    """A sequence with its records, as both sides tokenise it."""

    records: TokenRecords
    text: SequenceText
    teacher: Spans
    student: Spans  # of its labels; empty if the student cannot use the sequence
    tokens: TokenizedText | None
    text_changed: bool
    answers: TokenRecords | None  # what was asked at the student's boundaries
    turns: Turns

    @property
    def ends(self) -> Ints:
        """Select the student's end tokens among its labels."""
        assert self.tokens is not None
        return self.tokens.token_ids[self.tokens.has_record][self.student.is_eos]

    @property
    def label_ids(self) -> Ints:
        """Take the student's tokens that are labels."""
        assert self.tokens is not None
        return self.tokens.token_ids[self.tokens.has_record].astype(np.int64)

    def answered(self) -> Ints:
        """List (A, 2) the answers for labels with bytes, and the label of each."""
        if self.answers is None:
            return np.zeros((0, 2), np.int64)
        starts = self.answers.byte_starts.astype(np.int64) - self.text.supervised_start
        number = answers_of(self.student, starts, self.answers.byte_lengths.astype(np.int64))
        label = np.flatnonzero(number >= 0)
        return np.stack([number[label], label], 1)


class Asked(NamedTuple):
    """What training asks of the student in a sequence, for those who count it.

    Attributes:
        records: The sequence's records.
        text: Its text.
        teacher: Places of the records.
        student: Places of the labels.
        label_ids: (n,) the student's tokens.
        alignment: How both sides' places meet.
        pairs: The pairs of a loss; none if no loss was named.
        fits: (P,) at which of them the teacher's own token would be in the target, had another one
            come; elsewhere the student never writes it behind its last token.
        mapping: The map of the teacher's tokens in this row; None if the loss has none.
        answers: What the teacher was asked at the student's boundaries; None where it was not.
        answered: (A, 2) int64, numbers of an answer and of the label with bytes that it is for.
        turns: Of a conversation, its supervised turns.
    """

    records: TokenRecords
    text: SequenceText
    teacher: Spans
    student: Spans
    label_ids: Ints
    alignment: Alignment
    pairs: Pairs
    fits: Bools
    mapping: VocabularyMap | None
    answers: TokenRecords | None
    answered: Ints
    turns: Turns

    @property
    def sides(self) -> tuple[Alignment, Spans, Spans, Ints, Ints]:
        """Both sides as :func:`distill.data.maps.count_pairs` takes them."""
        record_ids = self.records.token_ids.astype(np.int64)
        return self.alignment, self.teacher, self.student, record_ids, self.label_ids
