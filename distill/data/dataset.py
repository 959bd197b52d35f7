"""From a store to batches: the student's tokens beside what the teacher said about the same bytes.

The student tokenises the store's own text, see :mod:`distill.student.text`. Its supervised tokens
that something predicts are the *labels*; everything of the teacher is placed on them here, on the
CPU, in DataLoader workers, so that the trainer sees only rectangles. Nothing is ever shifted later:
label j of a batch is the token whose prediction row j describes, and `rows` holds the logit row
that predicted it.

A batch:

    input_ids, labels          (R, T)   right-padded; labels -100 where not supervised
    attention_mask             (R, T)   bool
    position_ids               (R, T)   of packed sequences alone, see distill.data.packing
    rows                       (N,)     flat logit rows r * T + t - 1, one a label
    example                    (N,)     the sequence of each label, ascending
    tokens                     (B,)     that the model reads of each sequence
    aligned                    (B,)     labels that a teacher pair covers
    skipped, text_changed      (B,)     unusable sequences; those that the template changes
    row                        (B,)     number of the dataset's row
    pieces                              where it may be cut, see distill.data.batch_cuts; or None
    teacher[name]                       one dict a loss:
      uld        index (P,), entry_logprobs (M), tail_logmass (P,), log_scale (P,),
                 codec_bound (P,), earlier_index (E,), earlier_pair (E,)
      mapped_kl  index (P,), ids (M), logmass (M), rest_logmass (P,); tail_kl likewise
      sampled_kl index (P,), ids (M), entry_logprobs (M), tail_logmass (P,), draw_ids (D),
                 counts (D)
      alm        index (P,), logprob (P,), token_index (L,), token_pair (L,)
      multilevel_ot   index (S,), entry_logprobs (L, k), token_index (L,), token_pair (L,)

`index` is the label that a pair lies on. The probability of `earlier_index`'s labels scales the
student's side of pair `earlier_pair` (uld by bytes: the chain rule over a group). `token_index` are
all labels of a pair, `token_pair` which (alm: of a group; multilevel_ot: of a sequence).

It is about as large as the records it was made of: integers of 32 bits, and what the teacher said
flat, with counts (:mod:`distill.data.ragged`). What torch needs wider becomes so on the device.

Shape legend: B = sequences, R = rows (B of them unless packed), T = padded length, N = labels, P =
pairs of a loss, M = entries or mapped ids of all pairs, D = distinct draws of all pairs, E = labels
before the last one of their group, L = labels of pairs, S = sequences with a pair, k = columns; n =
records of a sequence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from distill.alignment.align import Alignment, Spans, align_many
from distill.alignment.map_entries import VocabularyMap
from distill.alignment.runs import runs
from distill.alignment.vocab_map import prefix_map
from distill.data.example import Example, Store
from distill.data.ragged import narrow
from distill.data.targets import (
    Arrays,
    Ints,
    alm_arrays,
    mapped_arrays,
    multilevel_arrays,
    position_groups,
    sampled_arrays,
    tail_arrays,
    teacher_spans,
    uld_arrays,
)
from distill.losses.multilevel_ot import COLUMNS
from distill.losses.requirements import NEEDS, check_needs
from distill.student.text import StudentReader
from logitstore.errors import InputError
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer, TokenizedText


class _BothSides(NamedTuple):
    """A line with its records, as both sides tokenise it."""

    records: TokenRecords
    text: SequenceText
    teacher: Spans
    student: Spans  # of its labels; none where it can make nothing of the line
    tokens: TokenizedText | None
    text_changed: bool

    @property
    def ends(self) -> Ints:
        """The tokens that end something for the student."""
        assert self.tokens is not None
        return self.tokens.token_ids[self.tokens.has_record][self.student.is_eos]


_NO_SPANS = Spans(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))


class StoreDataset(Dataset[Example]):
    """The sequences of a store that have records, as examples for one student.

    Sequences without records are left out here, so no sampler ever meets them; `without_records`
    says how many. A row that only this student's tokenizer cannot place (no bytes are known, or
    nothing is left of it within `max_length`), or whose supervised text its chat template changes,
    becomes an example without labels, marked `skipped`.

    Args:
        store: An open store; workers reopen its files by themselves.
        student: The student's tokenizer.
        losses: Names of the losses to prepare for, of those in
            :data:`distill.losses.requirements.NEEDS`.
        pairing: `bytes` or `position`, for uld.
        mapped_strict: For mapped_kl: only equal tokens, only where both sides end together.
        temperature: For tail_kl.
        max_length: Student tokens a row may have.
        template: The student's chat template, for a store of conversations.

    Raises:
        MismatchError: When a loss needs what the store was captured without.
        InputError: When no sequence has a record, or the template refuses the first conversation.
    """

    def __init__(
        self,
        store: Store,
        student: ByteTokenizer,
        losses: Sequence[str] = (),
        *,
        pairing: str = "bytes",
        mapped_strict: bool = False,
        temperature: float = 1.0,
        max_length: int | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        for name in losses:
            check_needs(store, student, name, temperature=temperature, pairing=pairing)
        self.store, self.losses = store, tuple(losses)
        self.pairing, self.mapped_strict, self.max_length = pairing, mapped_strict, max_length
        self.temperature = temperature
        self.reader = StudentReader(
            student, store.spec.rendering, store.path, template=template, max_length=max_length
        )
        counts = np.asarray(store.token_counts)
        self.sequences = np.flatnonzero(counts > 0)
        #: Of each sequence: all that is known of its length before its text is read.
        self.records: Ints = counts[self.sequences]
        self.without_records = len(store) - len(self.sequences)
        if not len(self.sequences):
            raise InputError(
                f"{store.path}: none of its {len(store):,} sequences has a record to train on. "
                f"`logitstore info {store.path}` says why."
            )
        self.mappings = {name: _mapping(store, student, name, mapped_strict) for name in losses}
        self._with_ends: dict[int, VocabularyMap] = {}
        if template is not None:
            self[0]  # a template that refuses every row must not wait for the first step

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """A batch at once, as DataLoader asks for it: one read of the store."""
        chosen = [int(self.sequences[i]) for i in indices]
        read = zip(self.store.read_many(chosen), map(self.store.text, chosen), strict=True)
        both = [self._both_sides(records, text) for records, text in read]
        if all(map(self._is_by_position, self.losses)):
            return [self._example(each, None) for each in both]
        alignments = align_many([(each.teacher, each.student) for each in both])
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
            found, labels = self._arrays(name, both, alignment)
            arrays[name] = {key: narrow(array) for key, array in found.items()}
            covered[labels] = True
        ids = tokens.token_ids.astype(np.int32)
        return Example(ids, tokens.has_record, arrays, int(covered.sum()), skipped=False, row=row)

    def _is_by_position(self, name: str) -> bool:
        return name == "multilevel_ot" or (name == "uld" and self.pairing == "position")

    def _arrays(
        self, name: str, both: _BothSides, alignment: Alignment | None
    ) -> tuple[Arrays, Ints]:
        """A loss's arrays of one sequence, and the labels that it covers."""
        records = both.records
        if self._is_by_position(name):
            groups = _by_position(both.teacher, both.student, both.text)
        else:
            assert alignment is not None
            groups = alignment.groups
        if name == "uld":
            arrays = uld_arrays(records, groups, float(self.store.fidelity.l1_max))
        elif name == "alm":
            arrays = alm_arrays(records, groups)
        elif name == "multilevel_ot":
            arrays = multilevel_arrays(records, groups, COLUMNS)
        else:
            assert alignment is not None
            is_strict = name == "mapped_kl" and self.mapped_strict
            pairs = alignment.strict if is_strict else alignment.shared_starts
            return self._by_ids(name, records, pairs, both.ends), pairs[:, 1]
        return arrays, runs(groups[:, 2], groups[:, 3])[1]

    def _by_ids(self, name: str, records: TokenRecords, pairs: Ints, ends: Ints) -> Arrays:
        mapping = self.mappings[name]
        assert mapping is not None
        if name == "mapped_kl":
            return mapped_arrays(records, pairs, self._ending(mapping, ends))
        if name == "sampled_kl":
            return sampled_arrays(records, pairs, mapping)
        held = tuple(self.store.spec.temperatures)
        column = None if self.temperature == 1 else held.index(self.temperature)
        return tail_arrays(records, pairs, mapping, self.temperature, column)

    def _ending(self, mapping: VocabularyMap, ends: Ints) -> VocabularyMap:
        """The mapping, with the teacher's ends sent to the token that ends this row's turns.

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


def _by_position(teacher: Spans, student: Spans, text: SequenceText) -> Ints:
    # Without BOS the first token of a text has no record, but it is the first all the same.
    has_context = any(s.text and not s.supervised for s in text.segments)
    teacher_first, student_first = (
        int(not has_context and bool(np.any(spans.starts[:1] > 0))) for spans in (teacher, student)
    )
    return position_groups(teacher, student, teacher_first, student_first)


def _mapping(store: Store, student: ByteTokenizer, name: str, strict: bool) -> VocabularyMap | None:
    """For every id that the teacher's head can name; by loss."""
    if "ids" not in NEEDS[name] or name == "multilevel_ot":  # which never compares an id with one
        return None
    # Within one tokenizer even tokens that write the same bytes, and its several ends, are apart.
    if store.spec.tokenizer_fingerprint == student.fingerprint:
        known = np.arange(student.size, dtype=np.int32)
    else:
        made = prefix_map(ByteTokenizer.from_folder(store.tokenizer_path), student)
        known = made.exact if strict else made.prefix
    # Heads are often padded past the tokenizer; those ids stand for no bytes at all.
    mapping = np.full(max(int(store.spec.vocab_size), len(known)), -1, np.int32)
    mapping[: len(known)] = known
    return VocabularyMap(mapping)
