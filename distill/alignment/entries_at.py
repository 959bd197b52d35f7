"""The teacher's entries at pairs of a record and a label, as an event map's sources.

At a shared start they are the record's entries as they are. Where the label begins inside of the
record's token they are those that go on from the bytes that the student has written, renormalised;
see :mod:`distill.alignment.realised`.

Shape legend: P = pairs, M = entries of all pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.alignment.align import Spans
from distill.alignment.beginnings import Beginnings
from distill.alignment.event_map import EventMap
from distill.alignment.map_entries import F32, F64, Came
from distill.alignment.realised import is_possible, label_share, own_places, possible_mass
from distill.alignment.runs import Ints, lists_of, runs
from logitstore.records import TokenRecords


@dataclass(frozen=True)
class Texts:
    """Both tokenisations of a sequence, for a loss that asks what the text shows of its labels.

    Attributes:
        teacher: Places of the records.
        student: Places of the labels.
        label_ids: (n,) the student's tokens.
        order: The teacher's vocabulary.
        label_bytes: The bytes of each label, if the records stand at the labels' own boundaries:
            their tokens then end elsewhere, and do not go on into one another.
    """

    teacher: Spans
    student: Spans
    label_ids: Ints
    order: Beginnings
    label_bytes: Sequence[bytes] | None = None


@dataclass(frozen=True)
class Places:
    """Where some labels stand, each beside the record that answers for it.

    Attributes:
        record: (P,) int64.
        label: (P,) int64.
        space: (P,) int64, how the teacher's tokens are read there, of
            :mod:`distill.alignment.event_map`.
        written: (P,) int64, bytes of the record's token that the student has written already.
    """

    record: Ints
    label: Ints
    space: Ints
    written: Ints


@dataclass(frozen=True)
class Sources:
    """Entries by their sources.

    Attributes:
        count: (P,) entries of each pair.
        source: (M,) the source of each.
        logprobs: (M,) float32, their log-probabilities.
        rest: (P,) float64, log of the mass beyond them.
    """

    count: Ints
    source: Ints
    logprobs: F32
    rest: F64


def sources_at(
    records: TokenRecords, at: Places, made: EventMap, order: Beginnings | None
) -> Sources:
    """List the entries at each pair, and the mass beyond them."""
    assert records.entry_ids is not None
    rest = records.tail_logmass[at.record].astype(np.float64)
    if order is None or not at.written.any():
        count, (ids, logprobs) = lists_of(
            records.entry_count, at.record, records.entry_ids, records.entry_logprobs
        )
        if at.space.any():
            ids = made.source_of_token(ids.astype(np.int64), np.repeat(at.space, count))
        return Sources(count, ids, logprobs, rest)
    pair, place = _kept(records, at, order)
    ids, logprobs = records.entry_ids[place].astype(np.int64), records.entry_logprobs[place]
    written, inner = at.written[pair], at.written > 0
    whole = made.source_of_token(ids, at.space[pair])
    behind = made.source_behind(ids, np.maximum(written, 1))
    scale = log_scale(records, at, order)
    return Sources(
        np.bincount(pair, minlength=len(at.record)),
        np.where(written > 0, behind, whole),
        (logprobs - scale[pair]).astype(np.float32),
        np.where(inner, _unlisted(records, at, scale), rest),
    )


def _unlisted(records: TokenRecords, at: Places, scale: F64) -> F64:
    """Compute (P,) log of the own token's share of what can follow, where it is not an entry."""
    is_entry = own_places(records, at.record) >= 0
    return np.where(is_entry, -np.inf, np.nan_to_num(records.token_logprob[at.record]) - scale)


def _kept(records: TokenRecords, at: Places, order: Beginnings) -> Ints:
    """List (2, M) pair and place of the entries that go on from what is written at each pair."""
    stop = np.cumsum(records.entry_count)[at.record]
    whole = np.flatnonzero(at.written == 0)
    pair, place = runs((stop - records.entry_count[at.record])[whole], stop[whole])
    inner = np.flatnonzero(at.written > 0)
    inside, there = is_possible(records, at.record[inner], at.written[inner], order).T
    pairs = np.concatenate([whole[pair], inner[inside]])
    in_order = np.argsort(pairs, kind="stable")
    return np.stack([pairs[in_order], np.concatenate([place, there])[in_order]])


def log_scale(records: TokenRecords, at: Places, order: Beginnings) -> F64:
    """Compute (P,) log of the mass of what can follow; 0 where nothing is written yet."""
    scale = np.zeros(len(at.record))
    inner = np.flatnonzero(at.written > 0)
    with np.errstate(divide="ignore"):
        scale[inner] = np.log(possible_mass(records, at.record[inner], at.written[inner], order))
    return scale


def came_at(
    records: TokenRecords, at: Places, made: EventMap, texts: Texts, sources: Sources
) -> Came:
    """Find what the text shows at each pair: how much of the own token goes on to the label."""
    assert records.entry_ids is not None
    pairs = np.stack([at.record, at.label], 1)
    if texts.label_bytes is None:
        share = label_share(pairs, texts.teacher, texts.student, records, texts.order)
    else:
        share = _whole_labels(records, at, texts, texts.label_bytes)
    own = records.token_ids[at.record].astype(np.int64)
    own_source = np.where(
        at.written > 0,
        made.source_behind(own, np.maximum(at.written, 1)),
        made.source_of_token(own, at.space),
    )
    owner = np.repeat(np.arange(len(own)), sources.count)
    is_own = sources.source == own_source[owner]
    place = np.full(len(own), -1, np.int64)
    place[owner[is_own]] = np.flatnonzero(is_own)
    logprob = records.token_logprob[at.record] - log_scale(records, at, texts.order)
    listed = place >= 0  # as its entry has it, so that the sum stays the same
    logprob[listed] = sources.logprobs[place[listed]]
    is_known = ~np.isnan(share) & ~np.isnan(logprob)
    event = np.where(is_known, made.event_of(texts.label_ids[at.label]), -1)
    return Came(event.astype(np.int32), place, logprob, np.where(is_known, share, 0.0))


def _whole_labels(
    records: TokenRecords, at: Places, texts: Texts, label_bytes: Sequence[bytes]
) -> F64:
    """Compute (P,) 0 where the record's own token is all of the label or more, else NaN."""
    own = records.token_ids[at.record].tolist()
    added = texts.teacher.has_added_space[at.record].tolist()
    is_end = texts.teacher.is_eos[at.record] & texts.student.is_eos[at.label]
    begins = [
        bool(label_bytes[label])
        and texts.order.written[token][skipped:].startswith(label_bytes[label])
        for token, skipped, label in zip(own, added, at.label.tolist(), strict=True)
    ]
    return np.where(np.array(begins, np.bool_) | is_end, 0.0, np.nan)


def rest_without(rest: F64, came: Came) -> F64:
    """Take from the rest (P,) the own tokens that are not entries and that became the label."""
    moved = (came.event >= 0) & (came.place < 0)
    taken = np.where(moved, np.exp(came.logprob + came.log_share), 0)
    with np.errstate(divide="ignore"):  # log 0 = -inf: the tail was that token alone
        return np.asarray(np.log(np.maximum(np.exp(rest) - taken, 0)), np.float64)
