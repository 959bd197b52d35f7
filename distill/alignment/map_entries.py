"""Sends a teacher's entries to events of the student: masses that meet at one event are added up.

No other step costs as much time for a token, so nothing is done twice. Where no two sources can
meet (one tokenizer; nearly all of a strict map) it is one look-up. Else the entries of a record are
sorted by their event, each as one integer of event and place: a short sort, of which a processor
does many together. Only masses that meet are computed from their logarithms.

Shape legend: P = records, M = entries of all of them, W = most entries of one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.event_map import EventMap
from distill.alignment.runs import Ints, runs

Ids = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sent:
    """The entries of records by event, ascending in a record where any were added up.

    Attributes:
        count: (P,) entries of each record.
        ids: (sum of counts,) events, distinct in a record.
        logmass: (sum of counts,) log of the mass that was sent to each.
        left_out: (P,) float64, mass of entries that was sent to no event; None where all was.
    """

    count: Ints
    ids: Ids
    logmass: F32
    left_out: F64 | None


class Came(NamedTuple):
    """What the text shows of each record's own token: the label that the student writes there.

    Attributes:
        event: (P,) int32, the event of the label; -1 where nothing is known.
        place: (P,) the own token's place among all entries; -1 where it is not an entry.
        logprob: (P,) float64, the own token's log-probability.
        log_share: (P,) float64, log of the share of that which goes on to the label: 0 where the
            token that came is all of the label, or more.
    """

    event: Ids
    place: Ints
    logprob: F64
    log_share: F64


class VocabularyMap:
    """An event map that is ready to send entries."""

    def __init__(self, made: EventMap) -> None:
        self.made = made

    @classmethod
    def of_ids(cls, ids: Ids) -> "VocabularyMap":
        """Make a map from (V_T,) the student id of each teacher id; -1 is none."""
        return cls(EventMap(ids, np.full(len(ids) + 1, len(ids), np.int64)))

    def __len__(self) -> int:
        return self.made.tokens

    @property
    def ids(self) -> Ids:
        """The event of each of the teacher's ids, where each has one."""
        assert self.made.first is None
        return self.made.event[: self.made.tokens]

    @cached_property
    def shares(self) -> npt.NDArray[np.bool_]:
        """Mark (R,) the sources that share their event with another one."""
        assert self.made.first is None
        targets, which, count = np.unique(self.made.event, return_inverse=True, return_counts=True)
        is_shared: npt.NDArray[np.bool_] = ((targets >= 0) & (count > 1))[which]
        return is_shared

    @cached_property
    def _can_meet(self) -> bool:
        return self.made.first is not None or bool(self.shares.any())

    def with_ends(self, teacher_ids: list[int], student_id: int) -> "VocabularyMap":
        """Copy this map, with the teacher's end-of-text tokens sent to one student token."""
        return VocabularyMap(self.made.with_ends(teacher_ids, student_id))

    def send(
        self,
        count_P: Ints,
        source_M: npt.NDArray[np.unsignedinteger] | Ints,
        logprobs_M: F32,
        came: Came | None = None,
    ) -> Sent:
        """Send the entries of some records to the student's events.

        Args:
            count_P: Number of entries of each record.
            source_M: The source of each entry, flat; a token's id is its plain source.
            logprobs_M: Their log-probabilities.
            came: What the text shows of the records' own tokens.
        """
        if self.made.first is not None:
            return self._spread(count_P, source_M.astype(np.int64), logprobs_M, came)
        target_M = self.made.event.take(source_M)
        came = None if came is None else _worth_it(came, target_M)
        if came is not None:
            logprobs_M = logprobs_M.copy()
            is_entry = (came.event >= 0) & (came.place >= 0)
            kept = _log1mexp(came.log_share[is_entry]).astype(np.float32)
            logprobs_M[came.place[is_entry]] += kept
            return _added_up(*_as_rows(count_P, target_M, logprobs_M, came))
        if self._can_meet and self.shares.take(source_M).any():
            return _added_up(*_as_rows(count_P, target_M, logprobs_M))
        return _as_they_are(count_P, target_M, logprobs_M)

    @cached_property
    def _log_share(self) -> F32:
        assert self.made.share is not None
        with np.errstate(divide="ignore"):  # log 0 = -inf: nothing is sent there
            return np.log(self.made.share)

    def _spread(self, count_P: Ints, source_M: Ints, logprobs_M: F32, came: Came | None) -> Sent:
        """Send entries each of which may go to several events."""
        made = self.made
        assert made.first is not None
        first_M, stop_M = made.first[source_M], made.first[source_M + 1]
        events_M = stop_M - first_M
        before_M = np.cumsum(events_M) - events_M  # pairs of the entries before each
        pair = np.arange(int(events_M.sum())) + np.repeat(first_M - before_M, events_M)
        target = made.event[pair]
        logmass = np.repeat(logprobs_M, events_M) + self._log_share[pair]
        if came is not None:
            self._take_labels(came, logmass, target, pair, (before_M, events_M))
        pairs_before = np.concatenate([[0], np.cumsum(events_M)])
        stop_P = np.cumsum(count_P)
        count = pairs_before[stop_P] - pairs_before[stop_P - count_P]
        return _added_up(*_as_rows(count, target, logmass, came))

    def _take_labels(
        self, came: Came, logmass: F32, target: Ids, pair: Ints, of_entry: tuple[Ints, Ints]
    ) -> None:
        """Take from each own token the share that goes on to its label; spread what remains.

        What remains did not become the label, so it is spread over the other events.
        """
        assert self.made.share is not None
        is_entry = (came.event >= 0) & (came.place >= 0)
        place = came.place[is_entry]
        first, events = of_entry[0][place], of_entry[1][place]
        own, member = runs(first, first + events)
        share = self.made.share[pair[member]].astype(np.float64)
        other = np.where(target[member] == came.event[is_entry][own], 0, share)
        total = np.bincount(own, other, len(place))[own]
        # Of a token that was never seen to become anything else, nothing is known but the label.
        spread = np.where(total > 0, other / np.where(total > 0, total, 1), share)
        remains = -np.expm1(came.log_share[is_entry])
        with np.errstate(divide="ignore"):  # log 0 = -inf: nothing remains
            logmass[member] = came.logprob[is_entry][own] + np.log(spread * remains[own])


def _as_they_are(count_P: Ints, target_M: Ids, logprobs_M: F32) -> Sent:
    """Send entries of which no two share an event."""
    is_sent_M = target_M >= 0
    if is_sent_M.all():
        return Sent(count_P, target_M, logprobs_M, None)
    owner_M = np.repeat(np.arange(len(count_P)), count_P)
    left = _totals(owner_M[~is_sent_M], _exp(logprobs_M[~is_sent_M]), len(count_P))
    count = np.bincount(owner_M[is_sent_M], minlength=len(count_P))
    return Sent(count, target_M[is_sent_M], logprobs_M[is_sent_M], left)


def _worth_it(came: Came, target_M: Ids) -> Came | None:
    """Forget labels to which the map sends all of the own token anyway; None if that is all."""
    at = np.clip(came.place, 0, max(0, len(target_M) - 1))
    mapped = target_M[at] if len(target_M) else np.full(len(at), -1)
    is_known = (came.event < 0) | (
        (came.place >= 0) & (mapped == came.event) & (came.log_share == 0)
    )
    return None if is_known.all() else came._replace(event=np.where(is_known, -1, came.event))


def _log1mexp(log_share: F64) -> F64:
    with np.errstate(divide="ignore"):  # log 0 = -inf: nothing remains
        return np.log(-np.expm1(log_share))


def _added_up(target_PW: Ids, logprobs_PW: F32) -> Sent:
    """Send entries of which some share an event, and add those up."""
    rows, width = target_PW.shape
    if not target_PW.size:
        nothing = np.zeros(0, np.int32)
        return Sent(np.zeros(rows, np.int64), nothing, nothing.astype(np.float32), None)
    none = int(target_PW.max()) + 1  # sorts entries without an event behind all others
    has_mass_PW = (target_PW >= 0) & (logprobs_PW > -np.inf)
    sorted_M, place_M = _sorted_rows(np.where(target_PW < 0, none, target_PW), none)
    logprobs_M = logprobs_PW.reshape(-1)[place_M]
    start, length = _runs_of_equals(sorted_M, width)
    target, row, logmass = sorted_M[start], start // width, logprobs_M[start]
    is_sent = target < none

    met = np.flatnonzero((length > 1) | ~is_sent)  # all others keep their log-probability
    run, member = runs(start[met], start[met] + length[met])
    mass = _totals(run, _exp(logprobs_M[member]), len(met))
    left_out = _totals(row[met], np.where(is_sent[met], 0.0, mass), rows)
    with np.errstate(divide="ignore"):  # log 0 = -inf: no mass at all
        logmass[met] = np.log(mass)
    if not has_mass_PW.all():  # an event that nothing is left of would be a padding slot
        is_sent &= logmass > -np.inf
    count = np.bincount(row[is_sent], minlength=rows)
    return Sent(count, target[is_sent], logmass[is_sent], left_out)


def _sorted_rows(target_PW: Ids, largest: int) -> tuple[Ids, npt.NDArray[np.intp]]:
    """Sort every row, and return all rows flat, and the flat place that each member had before."""
    rows, width = target_PW.shape
    bits = int(width - 1).bit_length()  # of the place, below the target's: ties keep their order
    dtype = np.int32 if (largest + 1) << bits < 2**31 else np.int64
    key_PW = target_PW.astype(dtype) << np.array(bits, dtype)
    key_PW |= np.arange(width, dtype=dtype)
    key_PW.sort(axis=1)
    place_PW = (key_PW & ((1 << bits) - 1)).astype(np.intp)
    place_PW += np.arange(0, rows * width, width)[:, None]
    return (key_PW >> np.array(bits, dtype)).astype(np.int32).reshape(-1), place_PW.reshape(-1)


def _runs_of_equals(sorted_M: Ids, width: int) -> tuple[Ints, Ints]:
    """Find the first and the length of each run of one target, in flat rows of this width."""
    is_first = np.empty(len(sorted_M), bool)
    np.not_equal(sorted_M[1:], sorted_M[:-1], out=is_first[1:])
    is_first[::width] = True
    start = np.flatnonzero(is_first)
    return start, np.diff(start, append=len(sorted_M))


def _as_rows(
    count_P: Ints, target_M: Ids, logprobs_M: F32, came: Came | None = None
) -> tuple[Ids, F32]:
    """Lay both out as (P, W); padding has no event and no mass.

    The last column is for the labels that came, each with its share of the own token.
    """
    width, labels = int(count_P.max(initial=0)), int(came is not None)
    if not labels and len(target_M) == len(count_P) * width:
        return target_M.reshape(len(count_P), width), logprobs_M.reshape(len(count_P), width)
    target_PW = np.full((len(count_P), width + labels), -1, np.int32)
    logprobs_PW = np.full(target_PW.shape, -np.inf, np.float32)
    is_there = np.arange(width + labels) < count_P[:, None]
    target_PW[is_there], logprobs_PW[is_there] = target_M, logprobs_M
    if came is not None:
        target_PW[:, -1] = came.event
        logprobs_PW[:, -1] = np.where(came.event >= 0, came.logprob + came.log_share, -np.inf)
    return target_PW, logprobs_PW


def _totals(owner: Ints, mass: F64, count: int) -> F64:
    return np.bincount(owner, mass, count).astype(np.float64, copy=False)


def _exp(logprobs: F32) -> F64:
    probabilities: F64 = np.exp(logprobs, dtype=np.float64)
    return probabilities
