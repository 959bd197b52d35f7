"""What the teacher said about a sequence, as arrays on the student's labels: one function a loss.

A *pair* is a label with the teacher's distribution for it. For uld it is a group (GOLD's merge: the
last position's distribution, times the probability of the group's earlier tokens) or, by position,
a single token a side; for alm a group; for mapped_kl, tail_kl and sampled_kl a shared start; for
multilevel_ot a whole sequence. `index` is the label that a pair lies on (its first, of a sequence).

Shape legend: P = pairs, K = entries or mapped ids, E = labels before the last one of their group.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.align import Spans
from distill.losses.multilevel_ot import COLUMNS
from distill.query import STD_FLOOR
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


def tail_arrays(
    records: TokenRecords,
    pairs: Ints,
    mapping: npt.NDArray[np.int32],
    temperature: float,
    column: int | None,
) -> Arrays:
    """The teacher's entries and tail at a temperature, by the student's ids.

    Args:
        records: The sequence's.
        pairs: (P, 2) shared starts.
        mapping: Teacher id -> the same student id, or -1 for an id that is no token.
        temperature: Of the softmax.
        column: Of `lognorm`, where that temperature lies; None at temperature 1.
    """
    if column is not None:
        assert records.lognorm is not None
        records = _tempered(records, temperature, records.lognorm[:, column])
    return mapped_arrays(records, pairs, mapping)


def _tempered(
    records: TokenRecords, temperature: float, lognorm: npt.NDArray[np.float32]
) -> TokenRecords:
    """The same distributions at another temperature: head + tail = 1 again.

    The tail is what the head leaves, where that is more than rounding. Tokens that share a mass u
    have at least u^(1/T) together at T > 1, and at most that below: the store's own tail bounds it.
    """
    logprobs = records.entry_logprobs.astype(np.float64) / temperature
    owner = np.repeat(np.arange(len(records)), records.entry_count)
    mass = np.exp(logprobs - lognorm[owner])
    head = np.bincount(owner, mass, len(records))
    as_one = np.exp(records.tail_logmass.astype(np.float64) / temperature - lognorm)
    least, most = (as_one, 1.0) if temperature > 1 else (0.0, np.minimum(as_one, 1))
    has_tail = records.tail_logmass > -np.inf
    tail = np.where(has_tail, np.clip(1 - head, least, most), 0)
    with np.errstate(divide="ignore"):  # log 0 = -inf: no tail
        log_tail, shift = np.log(tail), np.log1p(-np.minimum(tail, 1)) - np.log(head)
    return replace(
        records,
        entry_logprobs=(logprobs - lognorm[owner] + shift[owner]).astype(np.float32),
        tail_logmass=log_tail.astype(np.float32),
    )


def sampled_arrays(records: TokenRecords, pairs: Ints, mapping: npt.NDArray[np.int32]) -> Arrays:
    """Entries and draws by the student's ids; what is no token of the student's is left out."""
    assert records.sample_ids is not None
    assert records.sample_counts is not None
    assert records.draw_count is not None
    entries, at = records.padded(), pairs[:, 0]
    assert entries.ids is not None
    mask = entries.mask[at]
    ids = np.full(mask.shape, -1, np.int64)
    ids[mask] = mapping[entries.ids[at][mask]]
    record, _ = runs(np.zeros_like(records.draw_count), records.draw_count)
    # An id drawn more than 255 times is stored again with the rest; as a target it is one.
    draws = records.sample_ids.astype(np.int64)
    is_new = np.diff(record, prepend=-1).astype(bool) | np.diff(draws, prepend=-1).astype(bool)
    first = np.flatnonzero(is_new)
    times = np.bincount(np.cumsum(is_new) - 1, records.sample_counts, len(first))
    distinct = np.bincount(record[first], minlength=len(records))
    record, slot = runs(np.zeros_like(distinct), distinct)
    shape = (len(records), int(distinct.max(initial=0)))
    draw_ids, counts = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    draw_ids[record, slot] = mapping[draws[first]]
    counts[record, slot] = np.where(draw_ids[record, slot] >= 0, times, 0)
    return {
        "index": pairs[:, 1],
        "ids": ids,
        "entry_logprobs": np.where(ids >= 0, entries.logprobs[at], -np.inf).astype(np.float32),
        "tail_logmass": records.tail_logmass[at],
        "draw_ids": draw_ids[at],
        "counts": counts[at],
    }


def alm_arrays(records: TokenRecords, groups: Ints) -> Arrays:
    """The teacher's log-probability of each group's bytes, and the labels that write them."""
    pair, record = runs(groups[:, 0], groups[:, 1])
    token_pair, token_index = runs(groups[:, 2], groups[:, 3])
    return {
        "index": groups[:, 3] - 1,
        "logprob": np.bincount(pair, records.token_logprob[record], len(groups)).astype(np.float32),
        "token_index": token_index,
        "token_pair": token_pair,
    }


def multilevel_arrays(records: TokenRecords, groups: Ints, columns: int) -> Arrays:
    """The teacher's columns of one sequence, at one scale of logits; `index` is one a sequence.

    Args:
        records: All of the sequence's: columns are ranked over them.
        groups: (P, 4) one token a side, as :func:`position_groups` pairs them.
        columns: How many to choose.
    """
    logprobs = np.full((len(groups), columns), -np.inf, np.float32)
    if len(groups):
        logprobs = _at_columns(records, columns)[groups[:, 0]]
    return {
        "index": groups[:1, 2],
        "entry_logprobs": logprobs,
        "token_index": groups[:, 2],
        "token_pair": np.zeros(len(groups), np.int64),
    }


def _at_columns(records: TokenRecords, columns: int) -> npt.NDArray[np.float32]:
    """(n, columns) log Q at the ids with most of it over the sequence; -inf where no entry is."""
    assert records.entry_ids is not None
    assert records.logit_std is not None
    assert records.lognorm_std is not None
    owner = np.repeat(np.arange(len(records)), records.entry_count)
    scale = records.logit_std.astype(np.float64) + STD_FLOOR
    scaled = records.entry_logprobs / scale[owner] - records.lognorm_std[owner]
    ids, which = np.unique(records.entry_ids, return_inverse=True)
    mass = np.bincount(which, np.exp(scaled), len(ids))
    order = np.argsort(-mass, kind="stable")[:columns]
    place = np.full(len(ids), -1)
    place[order] = np.arange(len(order))
    found = place[which]
    table = np.full((len(records), columns), -np.inf, np.float32)
    table[owner[found >= 0], found[found >= 0]] = scaled[found >= 0]
    return table


def no_pairs(name: str) -> Arrays:
    """What a batch holds when none of its rows could be used."""
    ints, floats = np.zeros(0, np.int64), np.zeros(0, np.float32)
    ids = np.zeros(0, np.uint32)
    nothing = TokenRecords(
        token_ids=ids,
        byte_starts=ints,
        byte_lengths=ints,
        token_logprob=floats,
        entry_count=ints,
        entry_ids=ids,
        entry_logprobs=floats,
        tail_logmass=floats,
        entropy=floats,
        sample_ids=ids,
        sample_counts=np.zeros(0, np.uint8),
        draw_count=ints,
    )
    pairs, groups = np.zeros((0, 2), np.int64), np.zeros((0, 4), np.int64)
    mapping = np.zeros(0, np.int32)
    made: dict[str, Callable[[], Arrays]] = {
        "uld": lambda: uld_arrays(nothing, groups, 0.0),
        "mapped_kl": lambda: mapped_arrays(nothing, pairs, mapping),
        "tail_kl": lambda: mapped_arrays(nothing, pairs, mapping),
        "sampled_kl": lambda: sampled_arrays(nothing, pairs, mapping),
        "alm": lambda: alm_arrays(nothing, groups),
        "multilevel_ot": lambda: multilevel_arrays(nothing, groups, COLUMNS),
    }
    return made[name]()


def runs(first: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """All of first..stop-1 of every run in one line: (number of the run, member)."""
    count = stop - first
    run = np.repeat(np.arange(len(first)), count)
    within = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    return run, first[run] + within
