"""What a text shows of its labels: the teacher's probability that it goes on with a label's bytes.

The teacher's next token is t_1, with probability q_1(t_1). The student's label has the bytes y. If
y is the beginning of t_1, or all of it, then the token that came is the label. If y is longer, it
goes on into the teacher's next tokens t_2, t_3, … and their records tell how probable that was:

    y ends where t_j ends       q_2(t_2) … q_j(t_j)
    y ends inside t_j           q_2(t_2) … q_(j-1)(t_(j-1)) times the mass of those of record j's
                                entries that begin with the rest of y

So of q_1(t_1) this share goes on to the label; what remains does not. In the second case the sum
leaves out entries in the tail, so it is too small by the tail at most.

A label may also begin inside t_1, when the student has written its first bytes c already. The
record then answers another question: its entries that begin with c, and are longer, are what the
teacher holds possible. Renormalised by their own mass they are the distribution of what follows.
The tokens of the tail that begin with c are missing: the sum of all that was asked for is off by
less than tail / (tail + mass).

Shape legend: P = pairs of a record and a label, n = records of the sequence.
"""

from typing import NamedTuple

import numpy as np

from distill.alignment.align import Spans
from distill.alignment.beginnings import Beginnings
from distill.alignment.map_entries import F64
from distill.alignment.runs import Ints, runs
from logitstore.records import TokenRecords

#: Shares are clipped here: a store's log-probabilities are rounded, and 1 + 1e-4 is no share.
_LARGEST_LOG_SHARE = 0.0


class Between(NamedTuple):
    """Labels that begin inside one of the teacher's tokens.

    Attributes:
        pairs: (P, 2) int64, the record that covers each label's start, and the label.
        written: (P,) int64, the bytes of the record's token that are there already.
        mass: (P,) float64, of the record's entries that begin with these bytes and are longer.
        bound: (P,) float64, at most so much of the distribution is missing.
    """

    pairs: Ints
    written: Ints
    mass: F64
    bound: F64


def labels_between(
    teacher: Spans, student: Spans, records: TokenRecords, order: Beginnings
) -> Between:
    """Find the labels that begin inside one of the teacher's tokens, with what is known there."""
    if not len(teacher.starts) or not len(student.starts):
        nothing = np.zeros(0)
        return Between(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), nothing, nothing)
    record = np.searchsorted(teacher.starts, student.starts, side="right") - 1
    at = np.maximum(record, 0)
    inside = student.starts - teacher.starts[at]
    is_between = (record >= 0) & (inside > 0) & (inside < teacher.lengths[at])
    is_between &= (student.lengths > 0) & (student.heads == 0) & ~student.has_added_space
    is_between &= student.is_verbatim & teacher.is_verbatim[at]
    label = np.flatnonzero(is_between)
    record = at[label]
    written = inside[label] + teacher.heads[record] + teacher.has_added_space[record]
    mass = possible_mass(records, record, written, order)
    tail = np.exp(records.tail_logmass[record].astype(np.float64))
    bound = np.divide(tail, tail + mass, out=np.ones_like(mass), where=tail + mass > 0)
    return Between(np.stack([record, label], 1), written, mass, np.where(mass > 0, bound, 1.0))


def is_possible(records: TokenRecords, record: Ints, written: Ints, order: Beginnings) -> Ints:
    """Mark the entries of the given records that begin with their own token's first bytes.

    Args:
        records: The records.
        record: (P,) numbers of records.
        written: (P,) how many bytes of the record's own token are meant.
        order: The teacher's vocabulary.

    Returns:
        (M, 2) int64: the pair, and the place among all entries, of each entry that is longer.
    """
    assert records.entry_ids is not None
    stop = np.cumsum(records.entry_count)[record]
    pair, place = runs(stop - records.entry_count[record], stop)
    _, longer, end = order.ranges(records.token_ids[record].astype(np.int64), written)
    rank = order.rank[records.entry_ids[place]]
    kept = (rank >= longer[pair]) & (rank < end[pair])
    return np.stack([pair[kept], place[kept]], 1)


def possible_mass(records: TokenRecords, record: Ints, written: Ints, order: Beginnings) -> F64:
    """Sum up (P,) the probability of what begins with a token's first bytes, and is longer."""
    pair, place = is_possible(records, record, written, order).T
    mass = np.bincount(pair, _probabilities(records, place), len(record))
    own = ~np.isin(record, _with_own_entry(records, record))
    return np.asarray(mass + np.where(own, _own_probability(records, record), 0), np.float64)


def label_share(
    pairs: Ints, teacher: Spans, student: Spans, records: TokenRecords, order: Beginnings
) -> F64:
    """Compute (P,) log of the share of a record's own token that goes on to the label.

    Args:
        pairs: (P, 2) record and label of each pair.
        teacher: The records' places.
        student: The labels' places.
        records: The records.
        order: The teacher's vocabulary.

    Returns:
        0 where the token that came is all of the label or more. NaN where nothing can be said.
    """
    record, label = pairs.T
    ends = teacher.starts + teacher.lengths
    stop = student.starts[label] + student.lengths[label]
    last = np.minimum(np.searchsorted(ends, stop), len(ends) - 1)
    is_same_kind = teacher.is_eos[record] == student.is_eos[label]
    has_width = (teacher.lengths[record] > 0) & (student.lengths[label] > 0)
    is_known = is_same_kind & (has_width | student.is_eos[label])
    is_known &= student.is_verbatim[label] & teacher.is_verbatim[record]
    is_known &= student.is_eos[label] | ((student.tails[label] == 0) & (ends[last] >= stop))
    is_longer = is_known & ~student.is_eos[label] & (stop > ends[record])
    is_known &= ~is_longer | (_breaks(teacher)[last] == _breaks(teacher)[record])
    share = np.where(is_known, 0.0, np.nan)
    chosen = np.flatnonzero(is_known & is_longer)
    inner = stop[chosen] < ends[last[chosen]]
    share[chosen] = _chain(records, record[chosen] + 1, last[chosen] + ~inner)
    partly = chosen[inner]
    begun = stop[partly] - teacher.starts[last[partly]]
    share[partly] += _begun(records, last[partly], begun, order)
    return np.minimum(share, _LARGEST_LOG_SHARE)


def _breaks(teacher: Spans) -> Ints:
    """Count (n,) the places up to each record where it does not just go on where the last ended."""
    goes_on = np.zeros(len(teacher.starts), np.bool_)
    goes_on[1:] = teacher.starts[1:] == (teacher.starts + teacher.lengths)[:-1]
    goes_on &= (teacher.heads == 0) & ~teacher.has_added_space & teacher.is_verbatim
    goes_on[1:] &= teacher.tails[:-1] == 0
    return np.cumsum(~goes_on)


def _chain(records: TokenRecords, first: Ints, stop: Ints) -> F64:
    """Sum up the log-probabilities of the tokens first..stop-1 of each run."""
    run, member = runs(first, stop)
    logprobs = records.token_logprob[member].astype(np.float64)
    return np.bincount(run, logprobs, len(first)).astype(np.float64, copy=False)


def _begun(records: TokenRecords, record: Ints, begun: Ints, order: Beginnings) -> F64:
    """Compute log of the mass of tokens that begin with the first bytes of a record's own."""
    assert records.entry_ids is not None
    stop = np.cumsum(records.entry_count)[record]
    pair, place = runs(stop - records.entry_count[record], stop)
    first, _, end = order.ranges(records.token_ids[record].astype(np.int64), begun)
    rank = order.rank[records.entry_ids[place]]
    kept = (rank >= first[pair]) & (rank < end[pair])
    mass = np.bincount(pair[kept], _probabilities(records, place[kept]), len(record))
    missing = ~np.isin(record, _with_own_entry(records, record))
    mass = mass + np.where(missing, _own_probability(records, record), 0)
    with np.errstate(divide="ignore"):  # log 0 = -inf: the teacher ruled it out
        return np.log(mass)


def own_places(records: TokenRecords, record: Ints) -> Ints:
    """Find (P,) the place of each record's own token among all entries; -1 if it is not there."""
    assert records.entry_ids is not None
    stop = np.cumsum(records.entry_count)[record]
    pair, place = runs(stop - records.entry_count[record], stop)
    is_own = records.entry_ids[place] == records.token_ids[record][pair]
    found = np.full(len(record), -1, np.int64)
    found[pair[is_own]] = place[is_own]
    return found


def _with_own_entry(records: TokenRecords, record: Ints) -> Ints:
    return record[own_places(records, record) >= 0]


def _own_probability(records: TokenRecords, record: Ints) -> F64:
    """Look up a record's own token; 0 where an import does not say."""
    return np.nan_to_num(np.exp(records.token_logprob[record].astype(np.float64)))


def _probabilities(records: TokenRecords, place: Ints) -> F64:
    return np.exp(records.entry_logprobs[place], dtype=np.float64)
