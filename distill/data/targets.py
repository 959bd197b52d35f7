"""The pairs of a sequence: which records of the teacher a label of the student is compared with.

Shape legend: P = pairs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.alignment.align import Alignment, Spans
from distill.losses.loss import Pairing
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.crossings import find_crossings
from logitstore.text.token_ids import begins_bare
from logitstore.text.tokenizer import ByteTokenizer, TokenizedText

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
    """
    ids, lengths = records.token_ids.astype(np.int64), records.byte_lengths.astype(np.int64)
    is_eos = (lengths == 0) & np.isin(ids, np.asarray(eos_ids, np.int64))
    starts = records.byte_starts.astype(np.int64) - text.supervised_start
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


def teacher_tokenizer(store: Any, student: ByteTokenizer) -> ByteTokenizer:
    """Load the tokenizer of a store's teacher, or return the student's if it is the same."""
    if store.spec.tokenizer_fingerprint == student.fingerprint:
        return student
    return ByteTokenizer.from_folder(store.tokenizer_path)


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


def aligned_pairs(pairing: Pairing, alignment: Alignment, teacher: Spans, student: Spans) -> Ints:
    """Select the pairs of a kind: (P, 4) teacher's first record, stop, student's first, stop.

    Where one side alone writes an added space in front of its token, the two predict the same text
    by tokens of other bytes: such a pair is left out where tokens are compared by their bytes.
    """
    if pairing.kind == "groups":
        return alignment.groups
    starts = alignment.strict if pairing.kind == "strict" else alignment.shared_starts
    t, s = starts.T
    if pairing.vocabulary is not None:
        is_alike = teacher.has_added_space[t] == student.has_added_space[s]
        t, s = t[is_alike], s[is_alike]
    return np.stack([t, t + 1, s, s + 1], 1)
