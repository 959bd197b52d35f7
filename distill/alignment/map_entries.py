"""Sends a teacher's entries to events of the student: masses that meet at one event are added up.

No other step costs as much time for a token, so nothing is done twice. Where no two sources can
meet (one tokenizer; nearly all of a strict map) it is one look-up. Else the entries of all records
are sorted at once, each as one integer of record, event and place. Only masses that meet are
computed from their logarithms.

Shape legend: P = records, M = entries of all of them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.event_map import NEVER, SPACES, EventMap
from distill.alignment.runs import Ints, runs
from logitstore.records import TokenRecords

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

    def places_of(self, events: Ids) -> Ints:
        """Find (P, r) the places of events (P, r) among each record's; -1 where they are not."""
        stop = np.cumsum(self.count)
        place = np.full(events.shape, -1, np.int64)
        for each in range(events.shape[1]):
            found = np.flatnonzero(np.repeat(events[:, each], self.count) == self.ids)
            record = np.searchsorted(stop, found, side="right")
            place[record, each] = found - (stop - self.count)[record]
        return place


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

    def __reduce__(self) -> tuple[type["VocabularyMap"], tuple[EventMap]]:
        """Send a worker the map alone; it makes what it needs of it."""
        return VocabularyMap, (self.made,)

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
        """Mark (R,) the sources that share their event with another one of a record."""
        assert self.made.first is None
        event = self.made.event.astype(np.int64)
        # The entries of a record are all read with a space, or all without, or all begun.
        reading = np.minimum(np.arange(len(event)) // max(1, len(self)), SPACES)
        key = event - NEVER + reading * (int(event.max(initial=0)) - NEVER + 1)
        _, which, count = np.unique(key, return_inverse=True, return_counts=True)
        is_shared: npt.NDArray[np.bool_] = (event >= 0) & (count > 1)[which]
        return is_shared

    @cached_property
    def _can_meet(self) -> bool:
        return self.made.first is not None or bool(self.shares.any())

    def with_ends(self, teacher_ids: list[int], student_id: int) -> "VocabularyMap":
        """Copy this map, with the teacher's end-of-text tokens sent to one student token."""
        return VocabularyMap(self.made.with_ends(teacher_ids, student_id))

    def pairs_of(self, source_M: Ints) -> tuple[Ints, Ids, F32]:
        """List where sources can go: (n,) the place of the source, the event, and the share."""
        made = self.made
        if made.first is None:
            event = made.event[source_M]
            return np.arange(len(source_M)), event, np.ones(len(event), np.float32)
        assert made.share is not None
        place, pair = runs(made.first[source_M], made.first[source_M + 1])
        return place, made.event[pair], made.share[pair]

    def knows_choice(self, records: TokenRecords, record: Ints) -> npt.NDArray[np.bool_]:
        """Mark (P,) the records whose most probable token is sent somewhere, each to one event."""
        assert records.entry_ids is not None
        count = records.entry_count[record]
        known = np.zeros(len(record), np.bool_)
        first = (np.cumsum(records.entry_count) - records.entry_count)[record[count > 0]]
        known[count > 0] = self.ids[records.entry_ids[first].astype(np.int64)] >= 0
        return known

    def send(
        self,
        count_P: Ints,
        source_M: npt.NDArray[np.unsignedinteger] | Ints,
        logprobs_M: F32,
        came: Came | None = None,
        *,
        is_mixed: bool = False,
    ) -> Sent:
        """Send the entries of some records to the student's events.

        Args:
            count_P: Number of entries of each record.
            source_M: The source of each entry, flat; a token's id is its plain source.
            logprobs_M: Their log-probabilities.
            came: What the text shows of the records' own tokens.
            is_mixed: Whether entries of one record are read in several ways, so that any can meet.
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
            return _added_up(count_P, target_M, logprobs_M, came)
        if is_mixed or (self._can_meet and self.shares.take(source_M).any()):
            return _added_up(count_P, target_M, logprobs_M)
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
        return _added_up(count, target, logmass, came)

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


def _added_up(count_P: Ints, target_M: Ids, logprobs_M: F32, came: Came | None = None) -> Sent:
    """Send entries of which some share an event, and the labels that came, and add those up."""
    rows = len(count_P)
    owner_M = np.repeat(np.arange(rows), count_P)
    if came is not None:
        known = np.flatnonzero(came.event >= 0)
        owner_M = np.concatenate([owner_M, known])
        target_M = np.concatenate([target_M, came.event[known]])
        of_label = (came.logprob + came.log_share)[known].astype(np.float32)
        logprobs_M = np.concatenate([logprobs_M, of_label])
    place_M, start = _by_event(owner_M, target_M)
    logprobs_M = logprobs_M[place_M]
    first = place_M[start]
    target, row, logmass = target_M[first], owner_M[first], logprobs_M[start]
    length = np.diff(start, append=len(place_M))
    is_sent = target >= 0

    met = np.flatnonzero((length > 1) | ~is_sent)  # all others keep their log-probability
    run, member = runs(start[met], start[met] + length[met])
    mass = _totals(run, _exp(logprobs_M[member]), len(met))
    left_out = _totals(row[met], np.where(is_sent[met], 0.0, mass), rows)
    with np.errstate(divide="ignore"):  # log 0 = -inf: no mass at all
        logmass[met] = np.log(mass)
    is_sent &= logmass > -np.inf  # an event that nothing is left of would be a padding slot
    count = np.bincount(row[is_sent], minlength=rows)
    return Sent(count, target[is_sent], logmass[is_sent], left_out)


def _by_event(owner_M: Ints, target_M: Ids) -> tuple[Ints, Ints]:
    """Sort entries by record and event: their places, and the first of each run of equals.

    The place is the low bits of what is sorted, which is faster than sorting places by a key.
    """
    if not len(target_M):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    of_place = (len(target_M) - 1).bit_length()
    of_event = (int(target_M.max()) + 1).bit_length()
    key_M = (owner_M << of_event) + (target_M + 1)  # entries without an event are the first
    if int(owner_M.max()).bit_length() + of_event + of_place > 63:
        place_M = np.argsort(key_M, kind="stable")
        key_M = key_M[place_M]
    else:
        key_M = (key_M << of_place) + np.arange(len(target_M))
        key_M.sort()
        place_M, key_M = key_M & ((1 << of_place) - 1), key_M >> of_place
    is_first = np.ones(len(key_M), np.bool_)
    np.not_equal(key_M[1:], key_M[:-1], out=is_first[1:])
    return place_M, np.flatnonzero(is_first)


def _totals(owner: Ints, mass: F64, count: int) -> F64:
    return np.bincount(owner, mass, count).astype(np.float64, copy=False)


def _exp(logprobs: F32) -> F64:
    probabilities: F64 = np.exp(logprobs, dtype=np.float64)
    return probabilities
