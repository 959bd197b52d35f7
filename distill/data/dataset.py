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
    pieces                              where it may be cut, see distill.data.batch_cuts; or None
    teacher[name]                       a dict of arrays for each loss, made by the loss's own file;
                                        distill.losses.loss describes the names

A batch is about as large as the records that it was made of: its integers have 32 bits, and lists
of entries are flat, with counts (:mod:`distill.data.ragged`). Where torch needs more bits or
rectangles, they are made on the device.

Shape legend: B = sequences, R = rows (B of them unless packed), T = padded length, N = labels, P =
pairs of a loss.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from distill.alignment.align import Alignment, Spans, align_many
from distill.alignment.map_entries import VocabularyMap
from distill.alignment.vocab_map import prefix_map
from distill.data.batch_cuts import covered_by
from distill.data.example import Example, Store
from distill.data.ragged import narrow
from distill.data.targets import (
    Arrays,
    Ints,
    aligned_pairs,
    by_position,
    is_by_position,
    teacher_spans,
)
from distill.losses import find, option_values
from distill.losses.aligned import Aligned
from distill.losses.loss import Pairing
from distill.losses.requirements import check_needs
from distill.student.text import StudentReader
from logitstore.errors import InputError
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer, TokenizedText


class _BothSides(NamedTuple):
    """A sequence with its records, as both sides tokenise it."""

    records: TokenRecords
    text: SequenceText
    teacher: Spans
    student: Spans  # of its labels; empty if the student cannot use the sequence
    tokens: TokenizedText | None
    text_changed: bool

    @property
    def ends(self) -> Ints:
        """Select the student's end tokens among its labels."""
        assert self.tokens is not None
        return self.tokens.token_ids[self.tokens.has_record][self.student.is_eos]


_NO_SPANS = Spans(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))


class StoreDataset(Dataset[Example]):
    """The sequences of a store that have records, as examples for one student.

    Sequences without records are left out, so that samplers never see them; `without_records`
    counts them. A row that only this student cannot use (its tokenizer does not know the bytes of
    its tokens, or nothing is left within `max_length`), or whose supervised text its chat template
    changes, becomes an example without labels, marked `skipped`.

    Args:
        store: An open store; workers reopen its files by themselves.
        student: The student's tokenizer.
        losses: Names of the losses to prepare for, of :func:`distill.losses.all_losses`.
        max_length: Student tokens a row may have.
        template: The student's chat template, for a store of conversations.
        **options: Options of losses, by the names of their flags; the others have their defaults.

    Raises:
        MismatchError: A loss needs what the store was captured without.
        InputError: No sequence has a record, or the template rejects the first conversation.
    """

    def __init__(
        self,
        store: Store,
        student: ByteTokenizer,
        losses: Sequence[str] = (),
        *,
        max_length: int | None = None,
        template: ChatTemplate | None = None,
        **options: Any,
    ) -> None:
        for name in losses:
            check_needs(store, student, name, **options)
        self.store, self.losses, self.max_length = store, tuple(losses), max_length
        self.options = option_values(options)
        self.pairings = {name: find(name).pairing_of(self.options) for name in losses}
        self.reader = StudentReader(
            student, store.spec.rendering, store.path, template=template, max_length=max_length
        )
        counts = np.asarray(store.token_counts)
        self.sequences = np.flatnonzero(counts > 0)
        #: Number of records of each sequence: a guess at its length before its text is read.
        self.records: Ints = counts[self.sequences]
        self.without_records = len(store) - len(self.sequences)
        if not len(self.sequences):
            raise InputError(
                f"{store.path}: none of its {len(store):,} sequences has a record to train on. "
                f"`logitstore info {store.path}` says why."
            )
        self.mappings = {
            name: _mapping(store, student, pairing) for name, pairing in self.pairings.items()
        }
        self._with_ends: dict[int, VocabularyMap] = {}
        if template is not None:
            self[0]  # a template that rejects every row must fail now, not in the first step

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Make the examples of a batch with one read of the store; DataLoader calls this."""
        chosen = [int(self.sequences[i]) for i in indices]
        read = zip(self.store.read_many(chosen), map(self.store.text, chosen), strict=True)
        both = [self._both_sides(records, text) for records, text in read]
        if all(map(is_by_position, self.pairings.values())):
            return [self._example(sides, None) for sides in both]
        alignments = align_many([(sides.teacher, sides.student) for sides in both])
        return list(map(self._example, both, alignments))

    def _both_sides(self, records: TokenRecords, text: SequenceText) -> _BothSides:
        teacher = teacher_spans(records, text, self.store.spec.eos_ids)
        tokens, text_changed = self.reader.read(text, teacher)
        if tokens is None:
            return _BothSides(records, text, teacher, _NO_SPANS, None, text_changed)
        is_label = tokens.has_record
        student = Spans(
            tokens.byte_starts[is_label], tokens.byte_lengths[is_label], tokens.is_eos[is_label]
        )
        return _BothSides(records, text, teacher, student, tokens, text_changed)

    def _example(self, both: _BothSides, alignment: Alignment | None) -> Example:
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

    def _arrays(self, name: str, both: _BothSides, alignment: Alignment | None) -> Arrays:
        """Make a loss's arrays of one sequence."""
        pairing = self.pairings[name]
        if is_by_position(pairing):
            pairs = by_position(both.teacher, both.student, both.text)
        else:
            assert alignment is not None
            pairs = aligned_pairs(pairing, alignment)
        mapping, loss = self.mappings[name], find(name)
        aligned = Aligned(
            both.records,
            pairs,
            None if mapping is None else self._ending(mapping, both.ends),
            self._l1_max if loss.has_bound else 0.0,
            tuple(self.store.spec.temperatures),
        )
        return loss.arrays(aligned, self.options)

    @cached_property
    def _l1_max(self) -> float:
        return float(self.store.fidelity.l1_max)

    def _ending(self, mapping: VocabularyMap, ends: Ints) -> VocabularyMap:
        """Send the teacher's end tokens to the token that ends this row's turns.

        A chat template may end a turn with another token than the student's EOS. Where both sides
        have one tokenizer, every token is already sent to itself.
        """
        student = self.reader.tokenizer
        is_same = self.store.spec.tokenizer_fingerprint == student.fingerprint
        if is_same or not len(ends) or ends[-1] == student.eos_token_id:
            return mapping
        end = int(ends[-1])
        if end not in self._with_ends:
            self._with_ends[end] = mapping.with_ends(list(self.store.spec.eos_ids), end)
        return self._with_ends[end]


def _mapping(store: Store, student: ByteTokenizer, pairing: Pairing) -> VocabularyMap | None:
    """Map every id that the teacher's head has; None for a loss that compares no ids."""
    if pairing.vocabulary is None:
        return None
    # Within one tokenizer each token is itself, even one of several with equal bytes, or an end.
    if store.spec.tokenizer_fingerprint == student.fingerprint:
        known = np.arange(student.size, dtype=np.int32)
    else:
        made = prefix_map(ByteTokenizer.from_folder(store.tokenizer_path), student)
        known = made.exact if pairing.vocabulary == "exact" else made.prefix
    # Heads are often padded beyond the tokenizer's size; those ids have no bytes.
    mapping = np.full(max(int(store.spec.vocab_size), len(known)), -1, np.int32)
    mapping[: len(known)] = known
    return VocabularyMap(mapping)
