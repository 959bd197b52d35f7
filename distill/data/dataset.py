"""A store as a dataset: the student's tokens, with the teacher's records of the same bytes.

The student tokenises the store's own text, see :mod:`distill.student.text`. Its supervised tokens
that some position predicts are the *labels*. The teacher's records are assigned to labels here, on
the CPU, in DataLoader workers. Nothing is shifted later: entry j of `rows` is the logit row that
predicts label j of the batch.

A batch:

    input_ids, labels          (R, T)   right-padded; labels -100 where not supervised
    attention_mask             (R, T)   bool
    position_ids               (R, T)   of packed sequences alone, see distill.data.packing
    rows                       (N,)     flat logit row r * T + t - 1 of each label
    example                    (N,)     the sequence of each label, ascending
    tokens                     (B,)     number of tokens of each sequence that the model reads
    aligned                    (B,)     labels that a teacher pair covers
    skipped, text_changed      (B,)     unusable sequences; those that the template changes
    row                        (B,)     number of the dataset's row
    store_share                (B, S)   of several stores alone: what each counts for there
    read_otherwise             (B,)     likewise: stores left out, which the student reads otherwise
    pieces                              where it may be cut, see distill.data.batch_cuts; or None
    teacher[name]                       a dict of arrays for each loss, made by the loss's own file;
                                        distill.losses.loss describes the names; of several stores
                                        for each, under the names of distill.losses.uses

A batch is about as large as the records that it was made of: its integers have 32 bits, and lists
of entries are flat, with counts (:mod:`distill.data.ragged`). Where torch needs more bits or
rectangles, they are made on the device.

Shape legend: B = sequences, R = rows (B of them unless packed), T = padded length, N = labels, P =
pairs of a loss, S = stores.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from distill.alignment.align import Alignment, Spans, align, align_many
from distill.alignment.edit_distance import check_installed
from distill.alignment.entries_at import own_fits
from distill.alignment.event_map import EventMap
from distill.alignment.make_map import Seen
from distill.alignment.map_entries import VocabularyMap
from distill.alignment.ways import with_answers
from distill.data.batch_cuts import covered_by
from distill.data.both_tokenizers import BothTokenizers
from distill.data.example import Example, Store
from distill.data.held import Held
from distill.data.maps import COUNTED_SEQUENCES, count_pairs, map_of, rendered_by
from distill.data.pairer import Pairer
from distill.data.ragged import narrow
from distill.data.records_asked import check_filter, holds_for, parse_filter
from distill.data.sides import Asked, BothSides
from distill.data.targets import (
    Arrays,
    Ints,
    is_of_all,
    plain_pairs,
    student_spans,
    teacher_spans,
    teacher_tokenizer,
)
from distill.data.token_weights import check_weights, weights_of
from distill.head.query import Partition
from distill.losses import find, option_values
from distill.losses.aligned import Aligned
from distill.losses.requirements import check_needs
from distill.student.text import Explained, StudentReader
from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer

_NO_SPANS = Spans(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))


class StoreDataset(Dataset[Example]):
    """The sequences of a store that have records, as examples for one student.

    Sequences without records are left out, so that samplers never see them; `without_records`
    counts them. A row that only this student cannot use (its tokenizer does not know the bytes of
    its tokens, or nothing is left within `max_length`), or whose supervised text its chat template
    changes or refuses, becomes an example without labels, marked `skipped`;
    :func:`distill.data.left_out.usable` says why.

    Args:
        store: An open store; workers reopen its files by themselves.
        student: The student's tokenizer.
        losses: Names of the losses to prepare for, of :func:`distill.losses.all_losses`.
        max_length: Student tokens a row may have.
        template: The student's chat template, for a store of conversations.
        rows: Numbers of the dataset's rows to use; None: all.
        top_k: How many entries of a record to use, of those stored; None: all.
        token_filter: Of :func:`distill.data.records_asked.parse_filter`; None: all tokens.
        token_weights: Of :mod:`distill.data.token_weights`; None: all weigh the same.
        **options: Options of losses, by the names of their flags; the others have their defaults.

    Raises:
        MismatchError: A loss needs what the store was captured without.
        InputError: No sequence has a record.
    """

    def __init__(
        self,
        store: Store,
        student: ByteTokenizer,
        losses: Sequence[str] = (),
        *,
        max_length: int | None = None,
        template: ChatTemplate | None = None,
        rows: Ints | None = None,
        top_k: int | None = None,
        token_filter: str | None = None,
        token_weights: str | None = None,
        **options: Any,
    ) -> None:
        for name in losses:
            check_needs(store, student, name, **options)
        self.rows, self.top_k, self.token_filter = rows, top_k, token_filter
        self._conditions = parse_filter(token_filter) if token_filter else ()
        check_filter(store, self._conditions)
        self.token_weights = token_weights
        check_weights(store, token_weights, losses)
        self.store, self.losses, self.max_length = store, tuple(losses), max_length
        self.options = option_values(options)
        self._found = {name: find(name) for name in losses}  # a worker may begin without them
        self.pairings = {name: each.pairing_of(self.options) for name, each in self._found.items()}
        self._check_of_all()
        for name, pairing in self.pairings.items():
            if pairing.kind == "strings":
                check_installed(f"--loss {name}")
        self.reader = StudentReader(
            student, store.spec.rendering, store.path, template=template, max_length=max_length
        )
        #: The tokenizer of the store's teacher.
        self.teacher = teacher_tokenizer(store, student)
        self.tokenizers = BothTokenizers(self.teacher, self.reader, store.spec)
        counts = np.asarray(store.token_counts)
        held = counts > 0
        if rows is not None:
            held &= np.isin(np.asarray(store.sequence_rows), rows)
        self.sequences = Held(held)
        self.without_records = int(np.sum(counts == 0))
        if not len(self.sequences):
            held_by_it = f"of its {counted(len(store), 'sequence')}"
            which = "that --rows names" if rows is not None else held_by_it
            raise InputError(
                f"{store.path}: none {which} has a record to train on. "
                f"`logitstore info {store.path}` says why."
            )
        made: dict[str, VocabularyMap] = {}
        for kind in {each.map for each in self.pairings.values() if each.map is not None}:
            made[kind] = VocabularyMap(self.map_of(kind))
        self.mappings = {
            name: None if pairing.map is None else made[pairing.map]
            for name, pairing in self.pairings.items()
        }
        self.pairer = Pairer(self.tokenizers, self.pairings, self.mappings)

    def _check_of_all(self) -> None:
        """Reject a filter of tokens for a loss whose labels have no record of their own."""
        of_all = [name for name, pairing in self.pairings.items() if is_of_all(pairing)]
        if of_all and self._conditions:
            raise InputError(
                f"--token_filter {self.token_filter}: {', '.join(of_all)} compares each label with "
                "all of the teacher's records of its sequence, not with one that a filter could be "
                "asked of. Leave it out, or use another --loss."
            )

    def with_losses(self, losses: Sequence[str], **options: Any) -> "StoreDataset":
        """Return the same store as this student reads it, for other losses and options."""
        reader = self.reader
        return StoreDataset(
            self.store,
            reader.tokenizer,
            losses,
            max_length=self.max_length,
            template=reader.template,
            rows=self.rows,
            top_k=self.top_k,
            token_filter=self.token_filter,
            token_weights=self.token_weights,
            **options,
        )

    @property
    def partitions(self) -> Mapping[str, Partition]:
        """What the ids of a loss are events of, by its name; the ids of others are tokens."""
        made = {name: each.made for name, each in self.mappings.items() if each is not None}
        return {
            name: Partition(
                torch.from_numpy(each.of_token),
                each.events,
                None if each.divided is None else torch.from_numpy(each.divided),
            )
            for name, each in made.items()
            if each.of_token is not None
        }

    @property
    def records(self) -> Ints:
        """Number of records of each sequence: a guess at its length before its text is read."""
        return self.sequences.of(np.asarray(self.store.token_counts))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Make the examples of a batch with one read of the store; DataLoader calls this."""
        both = self._both_sides([self.sequences[i] for i in indices])
        if not self.pairer.needs_alignment():
            return [self._example(sides, None) for sides in both]
        alignments = align_many([(sides.teacher, sides.student) for sides in both])
        return list(map(self._example, both, alignments))

    def read_alone(self, index: int) -> tuple[Explained, SequenceText]:
        """Read a sequence for the student, without the teacher's records where they decide nothing.

        Returns:
            What the student makes of it, and the line.
        """
        chosen = self.sequences[index]
        line, spans = self.store.text(chosen), _NO_SPANS
        if line.status == "split":  # which tokens a window has depends on the ends in its records
            spans = self._placed(self._records([chosen])[0], line)
        return self.reader.explain(line, spans), line

    def _records(self, chosen: Sequence[int]) -> list[TokenRecords]:
        """Read the records at the teacher's own tokens."""
        if self.is_at_boundaries:
            return self._cut(self.store.read_around(chosen))
        return self._cut(self.store.read_many(chosen))

    def _cut(self, records: list[TokenRecords]) -> list[TokenRecords]:
        """Leave out the entries that the run does not ask for."""
        if self.top_k is None:
            return records
        return [each.cut(self.top_k) for each in records]

    def _placed(self, records: TokenRecords, text: SequenceText) -> Spans:
        return teacher_spans(records, text, self.store.spec.eos_ids, self.teacher)

    def _both_sides(self, chosen: Sequence[int]) -> list[BothSides]:
        """Read sequences of the store, and tokenise them as the student does."""
        answers: Sequence[TokenRecords | None] = [None] * len(chosen)
        if self.is_at_boundaries:
            answers = self._cut(self.store.read_many(chosen))
        read = zip(self._records(chosen), map(self.store.text, chosen), answers, strict=True)
        return [self._sides(*each) for each in read]

    def _sides(
        self, records: TokenRecords, text: SequenceText, answers: TokenRecords | None
    ) -> BothSides:
        teacher = self._placed(records, text)
        read = self.reader.read(text, teacher)
        if read.tokens is None:
            none = _NO_SPANS, None, read.text_changed
            return BothSides(records, text, teacher, *none, answers, read.turns)
        student = student_spans(read.tokens)
        return BothSides(
            records, text, teacher, student, read.tokens, read.text_changed, answers, read.turns
        )

    def _example(self, both: BothSides, alignment: Alignment | None) -> Example:
        tokens, row = both.tokens, both.text.row
        if tokens is None:
            nothing = np.zeros(0, np.int32)
            return Example(nothing, nothing.astype(bool), {}, 0, True, both.text_changed, row)
        covered, arrays = np.zeros(len(both.student.starts), bool), {}
        for name in self.losses:
            of_loss = self._arrays(name, both, alignment)
            arrays[name] = {key: narrow(array) for key, array in of_loss.items()}
            covered |= covered_by(of_loss, len(covered))
        ids = tokens.token_ids.astype(np.int32)
        return Example(ids, tokens.has_record, arrays, int(covered.sum()), skipped=False, row=row)

    def _arrays(self, name: str, both: BothSides, alignment: Alignment | None) -> Arrays:
        """Make a loss's arrays of one sequence."""
        pairs, mapping = self.pairer.pairs(name, both, alignment)
        loss = self._found[name]
        records, ways = both.records, pairs.ways
        if ways is not None:
            assert both.answers is not None
            records = with_answers(records, both.answers)
        if self._conditions:
            pairs = pairs.chosen(holds_for(records, pairs.table, self._conditions))
        aligned = Aligned(
            records,
            pairs.table,
            mapping,
            self._l1_max if loss.has_bound else 0.0,
            tuple(self.store.spec.temperatures),
            pairs.written,
            pairs.space,
            self.tokenizers.order if ways is not None or pairs.written.any() else None,
            self.tokenizers.texts(both) if self.pairer.has_labels(name) else None,
            both.label_ids if mapping is not None or is_of_all(self.pairings[name]) else None,
            ways,
        )
        arrays = loss.arrays(aligned, self.options)
        if self.token_weights is not None:
            arrays |= weights_of(
                self.token_weights, aligned, arrays, int(self.store.spec.vocab_size)
            )
        return arrays

    @property
    def is_at_boundaries(self) -> bool:
        """Whether the store holds what the teacher was asked at the boundaries of a student."""
        return bool(self.store.spec.boundaries_of)

    @property
    def is_one_tokenizer(self) -> bool:
        """Whether teacher and student have one tokenizer, but for roles of tokens."""
        return self.tokenizers.are_one

    def map_of(self, kind: str) -> EventMap:
        """Make the map of a kind, for every id that the teacher's head has."""
        student = self.reader.tokenizer
        if self.is_one_tokenizer:
            made = self.tokenizers.family.map()
        else:
            read_by = {
                "store": self.store.digest,
                "at_boundaries": self.is_at_boundaries and "around",
                "sequences": len(self),
                "max_length": self.max_length,
                "template": rendered_by(self.reader.template),
            }
            if self.rows is not None:
                read_by["rows"] = self.rows_digest
            made = map_of(kind, self.teacher, student, read_by, self.seen)
        return made.widened(int(self.store.spec.vocab_size))

    @property
    def rows_digest(self) -> str | None:
        """What the chosen rows are, in a few letters; None for all."""
        if self.rows is None:
            return None
        return hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()[:16]

    def seen(self) -> Seen:
        """Count the pairs of tokens that begin at the same places of the store's text."""
        spread = np.linspace(0, len(self) - 1, min(COUNTED_SEQUENCES, len(self)))
        asked = map(self.asked, np.unique(spread.astype(int)).tolist())
        return count_pairs(each.sides for each in asked if each is not None)

    def asked(self, index: int, name: str | None = None) -> Asked | None:
        """Pair a sequence as training does; None if the student cannot use it.

        Args:
            index: Of the sequence, in this dataset.
            name: The loss whose pairs are wanted.
        """
        (both,) = self._both_sides([self.sequences[index]])
        if both.tokens is None:
            return None
        alignment = align(both.teacher, both.student)
        pairs, mapping = plain_pairs(np.zeros((0, 4), np.int64)), None
        if name is not None:
            pairs, mapping = self.pairer.pairs(name, both, alignment)
        fits = np.ones(len(pairs.table), np.bool_)
        if name is not None and self.pairer.has_labels(name):
            fits = own_fits(both.records, pairs.places, self.tokenizers.texts(both), both.label_ids)
        return Asked(
            both.records,
            both.text,
            both.teacher,
            both.student,
            both.label_ids,
            alignment,
            pairs,
            fits,
            mapping,
            both.answers,
            both.answered(),
            both.turns,
        )

    @cached_property
    def _l1_max(self) -> float:
        return float(self.store.fidelity.l1_max)
