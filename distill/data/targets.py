"""The pairs of a sequence: which records of the teacher a label of the student is compared with.

Shape legend: P = pairs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.align import Alignment, Spans
from distill.alignment.beginnings import Beginnings
from distill.alignment.entries_at import Places
from distill.alignment.event_map import LESS_SPACE, MORE_SPACE, PLAIN, EventMap
from distill.alignment.realised import labels_between
from distill.alignment.ways import Known, Ways, ways_at_starts, ways_between
from distill.losses.loss import Pairing
from logitstore.errors import MismatchError
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.crossings import find_crossings
from logitstore.text.stored import stored_bytes
from logitstore.text.token_ids import begins_bare
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer

Ints = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


def teacher_spans(
    records: TokenRecords, text: SequenceText, eos_ids: Sequence[int], teacher: ByteTokenizer
) -> Spans:
    """Place each record in this sequence's own supervised text.

    Args:
        records: The records.
        text: Their text.
        eos_ids: The teacher's tokens that end a turn or a text.
        teacher: The teacher's tokenizer, which knows what its tokens write.

    Raises:
        MismatchError: A record lies beyond the text.
    """
    ids, lengths = records.token_ids.astype(np.int64), records.byte_lengths.astype(np.int64)
    is_eos, ends = lengths == 0, {*eos_ids}
    without_bytes = np.flatnonzero(is_eos)  # few: mostly the last
    is_eos[without_bytes] = [i in ends for i in ids[without_bytes].tolist()]
    starts = records.byte_starts.astype(np.int64) - text.supervised_start
    _check_inside(starts, lengths, text)
    found = find_crossings(
        text.segments,
        teacher,
        ids,
        starts,
        lengths,
        is_eos,
        is_conversation=text.messages is not None,
    )
    return Spans(
        starts,
        found.lengths,
        is_eos,
        heads=found.heads,
        tails=found.tails,
        has_added_space=found.has_added_space,
        is_verbatim=found.is_verbatim,
    )


def _check_inside(starts: Ints, lengths: Ints, text: SequenceText) -> None:
    size = len(text.supervised_bytes)
    first, last = int(starts.min(initial=0)), int((starts + lengths).max(initial=0))
    if first < 0 or last > size:
        raise MismatchError(
            f"row {text.row:,} of the store: a record lies at byte "
            f"{first if first < 0 else last:,} of a text of {size:,} bytes, so its records are "
            "those of another text. Capture or import it again."
        )


def teacher_tokenizer(store: Any, student: ByteTokenizer) -> ByteTokenizer:
    """Load the tokenizer of a store's teacher, or take the student's if it is the same.

    It knows all that ends a turn in the store, which may be more than its names say.

    Raises:
        CorruptStoreError: Its files are not those that the store describes.
        MismatchError: They are read as another tokenizer than they were.
    """
    expected = store.spec.tokenizer_fingerprint
    if expected == student.fingerprint:
        return student.with_ends(store.spec.eos_ids)
    teacher = stored_bytes(store.tokenizer_path, expected, store.path)
    return teacher.with_ends(store.spec.eos_ids)


def student_spans(tokens: TokenizedText) -> Spans:
    """Place the labels of a text, its supervised tokens that something predicts."""
    has = tokens.has_record
    heads, tails = tokens.heads[has], tokens.tails[has]
    # Of a token that reaches over context into other supervised text, the first part counts.
    within = (tokens.text_ends - tokens.text_starts)[has] - heads - tails
    return Spans(
        starts=tokens.byte_starts[has],
        lengths=np.where(tokens.byte_lengths[has] > 0, within, 0),
        is_eos=tokens.is_eos[has],
        heads=heads,
        tails=tails,
        has_added_space=tokens.has_added_space[has],
        is_verbatim=tokens.is_verbatim[has],
    )


def position_groups(teacher: Spans, student: Spans, teacher_first: int, student_first: int) -> Ints:
    """Pair the k-th supervised token with the k-th; the longer side's others have no pair.

    The student's EOS is skipped, as in arXiv:2402.12030. `…_first` is the k of each side's first
    record.

    Returns:
        (P, 4) groups of one token a side: teacher first, stop, student first, stop.
    """
    student_count = len(student.starts) - int(student.is_eos[-1:].sum())
    start = max(teacher_first, student_first)
    stop = min(teacher_first + len(teacher.starts), student_first + student_count)
    k = np.arange(start, max(start, stop), dtype=np.int64)
    t, s = k - teacher_first, k - student_first
    return np.stack([t, t + 1, s, s + 1], 1)


def by_position(
    teacher: Spans,
    student: Spans,
    text: SequenceText,
    *,
    teacher_prefix: int,
    student_prefix: int,
) -> Ints:
    """Pair (P, 4) one token a side, each counted from the first with a record on both sides.

    The first token of a text without context has no record where nothing stands before it.

    Args:
        teacher: Its records.
        student: Its labels.
        text: The text of both.
        teacher_prefix: How many tokens the teacher's tokenizer puts before a text.
        student_prefix: How many the student's does.
    """
    has_context = any(s.text and not s.supervised for s in text.segments)
    is_bare = begins_bare(text.segments)
    teacher_first, student_first = (
        int(not has_context and (is_bare or not prefix))
        for prefix in (teacher_prefix, student_prefix)
    )
    return position_groups(teacher, student, teacher_first, student_first)


def is_by_position(pairing: Pairing) -> bool:
    """Tell whether pairs are made by counting tokens instead of by bytes."""
    return pairing.kind in ("positions", "sequence")


def is_of_all(pairing: Pairing) -> bool:
    """Tell whether each label is compared with all of the teacher's records of its sequence."""
    return pairing.kind == "labels"


def with_all(teacher: Spans, student: Spans) -> Ints:
    """Pair (L, 4) each of the student's labels with all of the teacher's records."""
    label = np.arange(len(student.starts), dtype=np.int64)
    count = np.full_like(label, len(teacher.starts))
    return np.stack([np.zeros_like(label), count, label, label + 1], 1)


def asks_at_boundaries(pairing: Pairing) -> bool:
    """Tell whether a loss compares what can follow at any boundary of the student's tokens."""
    return pairing.kind == "starts" and pairing.map is not None


class Pairs(NamedTuple):
    """Pairs of a sequence, in the order of their labels.

    Attributes:
        table: (P, 4) the teacher's first record, the one behind its last, the student's first label
            and the one behind its last.
        space: (P,) how the teacher's tokens are read there, of :mod:`distill.alignment.event_map`.
        written: (P,) bytes of the last record's token that are there already.
        ways: How the text can go on at each, where the teacher was asked at the student's
            boundaries; else None.
    """

    table: Ints
    space: Ints
    written: Ints
    ways: Ways | None = None

    @property
    def places(self) -> Places:
        """Where the pairs stand: the last record and the last label of each."""
        return Places(self.table[:, 1] - 1, self.table[:, 3] - 1, self.space, self.written)

    def chosen(self, which: Ints | npt.NDArray[np.bool_]) -> "Pairs":
        """Take some pairs, by their numbers or a mask."""
        ways = None if self.ways is None else self.ways.chosen(which)
        return Pairs(self.table[which], self.space[which], self.written[which], ways)


def plain_pairs(table: Ints) -> Pairs:
    """Make pairs at which the teacher's tokens are read as they are."""
    none = np.zeros(len(table), np.int64)
    return Pairs(table, none, none)


def aligned_pairs(pairing: Pairing, alignment: Alignment, teacher: Spans, student: Spans) -> Pairs:
    """Select the pairs of a kind, without labels that begin inside one of the teacher's tokens.

    A label must write the bytes of the text, and in a group all tokens of both sides must. Where
    one side alone writes an added space in front of its token, the teacher's are read without it;
    where the student alone does, nothing but the token that came is known.
    """
    if pairing.kind == "groups":
        return plain_pairs(verbatim_groups(alignment, teacher, student))
    t, s = (alignment.strict if pairing.kind == "strict" else alignment.shared_starts).T
    is_text = student.is_verbatim[s]
    t, s = t[is_text], s[is_text]
    if pairing.map is None:
        return plain_pairs(np.stack([t, t + 1, s, s + 1], 1))
    has, wants = teacher.has_added_space[t], student.has_added_space[s]
    space = np.where(has & ~wants, LESS_SPACE, np.where(wants & ~has, MORE_SPACE, PLAIN))
    return Pairs(np.stack([t, t + 1, s, s + 1], 1), space, np.zeros(len(t), np.int64))


def verbatim_groups(alignment: Alignment, teacher: Spans, student: Spans) -> Ints:
    """Select (G, 4) the groups in which every token of both sides writes the bytes of the text.

    A normaliser may have changed them: the two sides are then asked for two different texts.
    """
    groups = alignment.groups
    is_text = np.ones(len(groups), np.bool_)
    for side, first in ((teacher, 0), (student, 2)):
        others = np.concatenate([[0], np.cumsum(~side.is_verbatim)])
        is_text &= others[groups[:, first]] == others[groups[:, first + 1]]
    return groups[is_text]


def with_labels_between(
    pairs: Pairs,
    teacher: Spans,
    student: Spans,
    records: TokenRecords,
    made: EventMap,
    order: Beginnings,
) -> Pairs:
    """Add the labels that begin inside one of the teacher's tokens, where its token is an entry.

    However little mass begins with the bytes that are there already, it says what follows as well
    as much of it does: `tools.between_mass` measures it.
    """
    found = labels_between(teacher, student, records, made, order)
    chosen = found.mass > 0
    return _with_labels(pairs, found.pairs[chosen], found.written[chosen])


def with_answers_at_labels(pairs: Pairs, known: Known, fresh: Ints) -> Pairs:
    """Compare all labels with what can follow there, as the teacher was asked at each of them.

    Args:
        pairs: Those at shared starts.
        known: The sequence.
        fresh: Bytes where stretches of supervised text begin.
    """
    at_starts, is_known = ways_at_starts(known, pairs.table[:, [0, 2]], pairs.space, fresh)
    between, ways, is_answered = ways_between(known)
    starts = pairs._replace(ways=at_starts).chosen(is_known)
    ways = ways.chosen(is_answered)
    return _with_labels(starts, between[is_answered], ways.written, ways)


def _with_labels(pairs: Pairs, between: Ints, written: Ints, ways: Ways | None = None) -> Pairs:
    """Add (Q, 2) records and labels that begin inside the records' tokens."""
    t, s = between.T
    both = Pairs(
        np.concatenate([pairs.table, np.stack([t, t + 1, s, s + 1], 1)]),
        np.concatenate([pairs.space, np.zeros(len(t), np.int64)]),
        np.concatenate([pairs.written, written]),
        None if pairs.ways is None or ways is None else Ways.joined(pairs.ways, ways),
    )
    return both.chosen(np.argsort(both.table[:, 2], kind="stable"))
