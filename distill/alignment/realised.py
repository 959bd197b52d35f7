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
teacher holds possible. So are only those that the student would have cut there: it writes ` to` and
then `ken` for a token ` token`, but a ` total` that is a token of its own never begins with ` to`.
Renormalised by their own mass they are the distribution of what follows, given that t_1 is an
entry and goes on behind c. Where it does not, a token of the teacher's begins there too, and its
record says what follows; where t_1 is no entry, nothing is said. So over texts of the teacher's no
continuation is counted twice, and none is forgotten.

Shape legend: P = pairs of a record and a label, n = records of the sequence.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.align import Spans
from distill.alignment.beginnings import Beginnings
from distill.alignment.event_map import EventMap
from distill.alignment.map_entries import F32, F64
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
    """

    pairs: Ints
    written: Ints
    mass: F64


def labels_between(
    teacher: Spans, student: Spans, records: TokenRecords, made: EventMap, order: Beginnings
) -> Between:
    """Find the labels that begin inside one of the teacher's tokens, with what is known there."""
    if not len(teacher.starts) or not len(student.starts):
        return Between(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0))
    record = np.searchsorted(teacher.starts, student.starts, side="right") - 1
    at = np.maximum(record, 0)
    inside = student.starts - teacher.starts[at]
    is_between = (record >= 0) & (inside > 0) & (inside < teacher.lengths[at])
    is_between &= (student.lengths > 0) & (student.heads == 0) & ~student.has_added_space
    is_between &= student.is_verbatim & teacher.is_verbatim[at]
    label = np.flatnonzero(is_between)
    record = at[label]
    written = inside[label] + teacher.heads[record] + teacher.has_added_space[record]
    mass = possible(records, record, written, made, order).mass
    return Between(np.stack([record, label], 1), written, mass)


class Possible(NamedTuple):
    """What can follow the first bytes of the records' own tokens.

    Attributes:
        is_kept: (M,) bool, of the entries of all pairs, one pair behind the other: whether each
            begins with these bytes, and is longer. None of a record whose own token is no entry.
        mass: (P,) float64, their probability.
    """

    is_kept: npt.NDArray[np.bool_]
    mass: F64


def possible(
    records: TokenRecords, record: Ints, written: Ints, made: EventMap, order: Beginnings
) -> Possible:
    """Find what begins with the first bytes of the records' own tokens, and is longer.

    Args:
        records: The records.
        record: (P,) numbers of records.
        written: (P,) how many bytes of the record's own token are meant.
        made: Knows where the student's own tokens of a teacher's token end.
        order: The teacher's vocabulary.
    """
    own = records.token_ids[record].astype(np.int64)
    _, longer, end = order.ranges(own, written)
    entries = _between_ranks(records, record, order, longer, end)
    begun = np.flatnonzero(entries.is_inside)
    ids, pair = entries.ids[begun], entries.pair[begun]
    # A student that has written so much writes no token that it would have cut elsewhere. It has
    # cut the text's own there, whatever it does with the same bytes elsewhere.
    fits = ~made.is_never(made.source_behind(ids, written[pair])) | (ids == own[pair])
    kept = np.zeros(len(entries.is_inside), np.bool_)
    kept[begun[fits & entries.is_listed[pair]]] = True
    return Possible(kept, entries.mass_of(kept, len(record)))


class _Entries(NamedTuple):
    """All entries of some records, one record behind the other.

    Attributes:
        pair: (M,) the record, as it was asked for.
        ids: (M,) their tokens.
        logprobs: (M,) their log-probabilities.
        is_inside: (M,) whether each is in its range of the vocabulary's order.
        is_listed: (P,) whether the record's own token is an entry.
    """

    pair: Ints
    ids: Ints
    logprobs: F32
    is_inside: npt.NDArray[np.bool_]
    is_listed: npt.NDArray[np.bool_]

    def mass_of(self, chosen: npt.NDArray[np.bool_], pairs: int) -> F64:
        """Sum up (P,) the probability of the chosen entries."""
        probabilities = np.exp(self.logprobs[chosen], dtype=np.float64)
        mass = np.bincount(self.pair[chosen], probabilities, pairs)
        return mass.astype(np.float64, copy=False)


def _between_ranks(
    records: TokenRecords, record: Ints, order: Beginnings, low: Ints, high: Ints
) -> _Entries:
    """Find entries in ranges of the vocabulary's order."""
    assert records.entry_ids is not None
    count = records.entry_count[record]
    stop = np.cumsum(records.entry_count)[record]
    pair, place = runs(stop - count, stop)
    ids = records.entry_ids[place].astype(np.int64)
    rank = order.rank[ids]
    is_inside = (rank >= np.repeat(low, count)) & (rank < np.repeat(high, count))
    is_listed = np.zeros(len(record), np.bool_)
    is_listed[pair[ids == np.repeat(records.token_ids[record], count)]] = True
    return _Entries(pair, ids, records.entry_logprobs[place], is_inside, is_listed)


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


def goes_on(teacher: Spans) -> npt.NDArray[np.bool_]:
    """Tell (n,) which records just go on where the last one ended."""
    found = np.zeros(len(teacher.starts), np.bool_)
    found[1:] = teacher.starts[1:] == (teacher.starts + teacher.lengths)[:-1]
    found &= (teacher.heads == 0) & ~teacher.has_added_space & teacher.is_verbatim
    found[1:] &= teacher.tails[:-1] == 0
    return found


def _breaks(teacher: Spans) -> Ints:
    """Count (n,) the places up to each record where it does not just go on where the last ended."""
    return np.cumsum(~goes_on(teacher))


def _chain(records: TokenRecords, first: Ints, stop: Ints) -> F64:
    """Sum up the log-probabilities of the tokens first..stop-1 of each run."""
    run, member = runs(first, stop)
    logprobs = records.token_logprob[member].astype(np.float64)
    return np.bincount(run, logprobs, len(first)).astype(np.float64, copy=False)


def _begun(records: TokenRecords, record: Ints, begun: Ints, order: Beginnings) -> F64:
    """Compute log of the mass of tokens that begin with the first bytes of a record's own.

    NaN where nothing says how probable the own token is, which is one of them.
    """
    own = records.token_ids[record].astype(np.int64)
    first, _, end = order.ranges(own, begun)
    entries = _between_ranks(records, record, order, first, end)
    mass, is_listed = entries.mass_of(entries.is_inside, len(record)), entries.is_listed
    said = np.exp(records.token_logprob[record].astype(np.float64))
    with np.errstate(divide="ignore"):  # log 0 = -inf: the teacher ruled it out
        return np.asarray(np.log(mass + np.where(is_listed, 0, said)), np.float64)
