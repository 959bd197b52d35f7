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

from distill.alignment.align import Spans
from distill.alignment.map_entries import VocabularyMap
from distill.alignment.runs import lists_of, runs
from distill.head.query import STD_FLOOR
from distill.losses.multilevel_ot import COLUMNS
from logitstore.format.fields import no_records
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
    last = groups[:, 1] - 1
    pair, record = runs(groups[:, 0], last)
    # Not a difference of running sums: one token that the teacher excluded (-inf) would spoil all
    # later groups.
    log_scale = np.bincount(pair, records.token_logprob[record], len(groups))
    bound = np.exp(log_scale) * (
        l1_max + np.expm1((last - groups[:, 0]) * TOKEN_LOGPROB_ERROR_NATS)
    )
    earlier_pair, earlier_index = runs(groups[:, 2], groups[:, 3] - 1)
    count, (logprobs,) = lists_of(records.entry_count, last, records.entry_logprobs)
    return {
        "index": groups[:, 3] - 1,
        "count": count.astype(np.int32),
        "entry_logprobs": logprobs,
        "tail_logmass": records.tail_logmass[last],
        "log_scale": log_scale.astype(np.float32),
        "codec_bound": bound.astype(np.float32),
        "earlier_index": earlier_index,
        "earlier_pair": earlier_pair,
    }


def mapped_arrays(records: TokenRecords, pairs: Ints, mapping: VocabularyMap) -> Arrays:
    """The teacher's entries sent through `mapping`, masses of one student token added up.

    What is not mapped joins the tail in `rest_logmass`: it is summed, never got as 1 - sum, which
    would cancel exactly where the head holds nearly everything.
    """
    assert records.entry_ids is not None
    count, (ids, logprobs) = lists_of(
        records.entry_count, pairs[:, 0], records.entry_ids, records.entry_logprobs
    )
    rest = records.tail_logmass[pairs[:, 0]]
    sent = mapping.send(count, ids, logprobs)
    if sent.left_out is not None:
        with np.errstate(divide="ignore"):  # log 0 = -inf: nothing is left over
            rest = np.log(np.exp(rest, dtype=np.float64) + sent.left_out).astype(np.float32)
    return {
        "index": pairs[:, 1],
        "count": sent.count.astype(np.int32),
        "ids": sent.ids,
        "logmass": sent.logmass,
        "rest_logmass": rest,
    }


def tail_arrays(
    records: TokenRecords,
    pairs: Ints,
    mapping: VocabularyMap,
    temperature: float,
    column: int | None,
) -> Arrays:
    """The teacher's entries and tail at a temperature, by the student's ids.

    Args:
        records: The sequence's.
        pairs: (P, 2) shared starts.
        mapping: Teacher id -> the same student id, or none for an id that is no token.
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


def sampled_arrays(records: TokenRecords, pairs: Ints, mapping: VocabularyMap) -> Arrays:
    """Entries and draws by the student's ids; what is no token of the student's is left out."""
    assert records.entry_ids is not None
    assert records.sample_ids is not None
    assert records.sample_counts is not None
    assert records.draw_count is not None
    at = pairs[:, 0]
    count, (ids, logprobs) = lists_of(
        records.entry_count, at, records.entry_ids, records.entry_logprobs
    )
    target = mapping.ids[ids]
    record, _ = runs(np.zeros_like(records.draw_count), records.draw_count)
    # An id drawn more than 255 times is stored again with the rest; as a target it is one.
    draws = records.sample_ids.astype(np.int64)
    is_new = np.diff(record, prepend=-1).astype(bool) | np.diff(draws, prepend=-1).astype(bool)
    first = np.flatnonzero(is_new)
    times = np.bincount(np.cumsum(is_new) - 1, records.sample_counts, len(first)).astype(np.int32)
    distinct = np.bincount(record[first], minlength=len(records))
    draw_count, (draw_ids, counts) = lists_of(distinct, at, mapping.ids[draws[first]], times)
    return {
        "index": pairs[:, 1],
        "count": count.astype(np.int32),
        "ids": target,
        "entry_logprobs": np.where(target >= 0, logprobs, np.float32(-np.inf)),
        "tail_logmass": records.tail_logmass[at],
        "draw_count": draw_count.astype(np.int32),
        "draw_ids": draw_ids,
        "counts": np.where(draw_ids >= 0, counts, np.int32(0)),
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
    nothing = no_records()
    pairs, groups = np.zeros((0, 2), np.int64), np.zeros((0, 4), np.int64)
    mapping = VocabularyMap(np.zeros(0, np.int32))
    made: dict[str, Callable[[], Arrays]] = {
        "uld": lambda: uld_arrays(nothing, groups, 0.0),
        "mapped_kl": lambda: mapped_arrays(nothing, pairs, mapping),
        "tail_kl": lambda: mapped_arrays(nothing, pairs, mapping),
        "sampled_kl": lambda: sampled_arrays(nothing, pairs, mapping),
        "alm": lambda: alm_arrays(nothing, groups),
        "multilevel_ot": lambda: multilevel_arrays(nothing, groups, COLUMNS),
    }
    return made[name]()
