"""What the teacher said about a sequence, as arrays on the student's labels: one function a loss.

A *pair* is a label with the teacher's distribution for it. For uld it is a group (GOLD's merge: the
last position's distribution, times the probability of the group's earlier tokens) or, by position,
a single token a side; for mapped_kl a shared start. `index` is the label that a pair lies on.

Shape legend: P = pairs, K = entries or mapped ids, E = labels before the last one of their group.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.align import Spans
from logitstore.records import SequenceText, TokenRecords

#: A token's own log-probability is stored in steps of 1/512 nats, so it is off by half of one.
TOKEN_LOGPROB_ERROR_NATS = 1 / 1024

Ints = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


def teacher_spans(records: TokenRecords, text: SequenceText, eos_ids: Sequence[int]) -> Spans:
    """Where the records lie in this sequence's own supervised bytes."""
    is_eos = (records.byte_lengths == 0) & np.isin(records.token_ids, np.asarray(eos_ids, np.int64))
    starts = records.byte_starts.astype(np.int64) - text.supervised_start
    return Spans(starts, records.byte_lengths.astype(np.int64), is_eos)


def position_groups(teacher: Spans, student: Spans, teacher_first: int, student_first: int) -> Ints:
    """The k-th supervised token with the k-th, the longer side's rest dropped (arXiv:2402.12030).

    The student's EOS is skipped, as in the paper. `…_first` is the k of each side's first record.

    Returns:
        (P, 4) groups of one token a side: teacher first, stop, student first, stop.
    """
    student_count = len(student.starts) - int(student.is_eos[-1:].sum())
    start = max(teacher_first, student_first)
    stop = min(teacher_first + len(teacher.starts), student_first + student_count)
    k = np.arange(start, max(start, stop), dtype=np.int64)
    t, s = k - teacher_first, k - student_first
    return np.stack([t, t + 1, s, s + 1], 1)


def uld_arrays(records: TokenRecords, groups: Ints, l1_max: float) -> Arrays:
    """The teacher's side of each group: its last record, times the probability of what precedes.

    `codec_bound` is how far the L1 distance to the *live* teacher's group can differ for what the
    store rounds: c · (l1_max + e^(E h) - 1), with c the scale, E the earlier tokens and h the error
    of one stored token log-probability, since |c q - c' q'|_1 <= c |q - q'|_1 + |c - c'|.
    """
    entries = records.padded()
    last = groups[:, 1] - 1
    pair, record = runs(groups[:, 0], last)
    # Not a difference of running sums: one token that the teacher excluded (-inf) would spoil all
    # later groups.
    log_scale = np.bincount(pair, records.token_logprob[record], len(groups))
    bound = np.exp(log_scale) * (
        l1_max + np.expm1((last - groups[:, 0]) * TOKEN_LOGPROB_ERROR_NATS)
    )
    earlier_pair, earlier_index = runs(groups[:, 2], groups[:, 3] - 1)
    return {
        "index": groups[:, 3] - 1,
        "entry_logprobs": entries.logprobs[last],
        "tail_logmass": records.tail_logmass[last],
        "log_scale": log_scale.astype(np.float32),
        "codec_bound": bound.astype(np.float32),
        "earlier_index": earlier_index,
        "earlier_pair": earlier_pair,
    }


def mapped_arrays(records: TokenRecords, pairs: Ints, mapping: npt.NDArray[np.int32]) -> Arrays:
    """The teacher's entries sent through `mapping`, masses of one student token added up.

    What is not mapped joins the tail in `rest_logmass`: it is summed, never got as 1 - sum, which
    would cancel exactly where the head holds nearly everything.
    """
    entries = records.padded()
    assert entries.ids is not None
    logprobs, mask = entries.logprobs[pairs[:, 0]], entries.mask[pairs[:, 0]]
    target = np.full(mask.shape, -1, np.int64)
    target[mask] = mapping[entries.ids[pairs[:, 0]][mask]]
    mass = np.exp(logprobs, dtype=np.float64)
    rest = np.exp(records.tail_logmass[pairs[:, 0]], dtype=np.float64)
    rest += np.where(target < 0, mass, 0).sum(1)

    pair, slot = np.nonzero(target >= 0)
    width = np.int64(target.max(initial=0) + 1)
    keys, source = np.unique(pair * width + target[pair, slot], return_inverse=True)
    summed = np.bincount(source, mass[pair, slot], len(keys))
    row, ids = keys // width, keys % width
    count = np.bincount(row, minlength=len(pairs))
    column = runs(np.zeros_like(count), count)[1]
    shape = (len(pairs), int(count.max(initial=0)))
    arrays: Arrays = {"index": pairs[:, 1], "ids": np.full(shape, -1, np.int64)}
    arrays["logmass"] = np.full(shape, -np.inf, np.float32)
    with np.errstate(divide="ignore"):  # log 0 = -inf: nothing is left over
        arrays["ids"][row, column], arrays["logmass"][row, column] = ids, np.log(summed)
        arrays["rest_logmass"] = np.log(rest).astype(np.float32)
    return arrays


def no_pairs(name: str) -> Arrays:
    """What a batch holds when none of its rows could be used."""
    nothing = TokenRecords(
        token_ids=np.zeros(0, np.uint32),
        byte_starts=np.zeros(0, np.int64),
        byte_lengths=np.zeros(0, np.int64),
        token_logprob=np.zeros(0, np.float32),
        entry_count=np.zeros(0, np.int64),
        entry_ids=np.zeros(0, np.uint32),
        entry_logprobs=np.zeros(0, np.float32),
        tail_logmass=np.zeros(0, np.float32),
        entropy=np.zeros(0, np.float32),
    )
    if name == "uld":
        return uld_arrays(nothing, np.zeros((0, 4), np.int64), 0.0)
    return mapped_arrays(nothing, np.zeros((0, 2), np.int64), np.zeros(0, np.int32))


def runs(first: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """All of first..stop-1 of every run in one line: (number of the run, member)."""
    count = stop - first
    run = np.repeat(np.arange(len(first)), count)
    within = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    return run, first[run] + within
