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

Ints = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


def teacher_spans(records: TokenRecords, text: SequenceText, eos_ids: Sequence[int]) -> Spans:
    """Compute the bytes of each record, counted in this sequence's own supervised text."""
    is_eos = (records.byte_lengths == 0) & np.isin(records.token_ids, np.asarray(eos_ids, np.int64))
    starts = records.byte_starts.astype(np.int64) - text.supervised_start
    return Spans(starts, records.byte_lengths.astype(np.int64), is_eos)


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


def by_position(teacher: Spans, student: Spans, text: SequenceText) -> Ints:
    """Pair (P, 4) one token a side, each counted from the first token of the text."""
    # Without BOS the first token of a text has no record, but it counts as the first.
    has_context = any(s.text and not s.supervised for s in text.segments)
    teacher_first, student_first = (
        int(not has_context and bool(np.any(spans.starts[:1] > 0))) for spans in (teacher, student)
    )
    return position_groups(teacher, student, teacher_first, student_first)


def is_by_position(pairing: Pairing) -> bool:
    """Tell whether pairs are made by counting tokens instead of by bytes."""
    return pairing.kind in ("positions", "sequence")


def aligned_pairs(pairing: Pairing, alignment: Alignment) -> Ints:
    """Select the pairs of a kind: (P, 4) teacher's first record, stop, student's first, stop."""
    if pairing.kind == "groups":
        return alignment.groups
    starts = alignment.strict if pairing.kind == "strict" else alignment.shared_starts
    t, s = starts.T
    return np.stack([t, t + 1, s, s + 1], 1)
