"""The teacher's entries at pairs of a record and a label, as an event map's sources.

At a shared start they are the record's entries as they are. Where the label begins inside of the
record's token they are those that go on from the bytes that the student has written, renormalised;
see :mod:`distill.alignment.realised`. Where it is known what follows a token that ends there, too,
they are both, see :mod:`distill.alignment.ways`.

Shape legend: P = pairs, M = entries of all pairs.
"""

from dataclasses import dataclass

import numpy as np

from distill.alignment.align import Spans
from distill.alignment.beginnings import Beginnings
from distill.alignment.cuts import LEAST_ASKED, Bools, Cuts
from distill.alignment.event_map import PLAIN, EventMap
from distill.alignment.map_entries import F32, F64, Came
from distill.alignment.realised import label_share, possible
from distill.alignment.runs import Ints, lists_of
from distill.alignment.ways import Ways
from logitstore.records import TokenRecords

#: Where less of a record's mass is left than this, it says nothing about what can follow.
LEAST_LEFT = 0.05


@dataclass(frozen=True)
class Texts:
    """Both tokenisations of a sequence, for a loss that asks what the text shows of its labels.

    Attributes:
        teacher: Places of the records.
        student: Places of the labels.
        order: The teacher's vocabulary.
        cuts: Knows what the student never writes behind a token; None: not asked.
    """

    teacher: Spans
    student: Spans
    order: Beginnings
    cuts: Cuts | None = None


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
        scale: (P,) float64, log of the mass of what can follow, by which all were divided.
    """

    count: Ints
    source: Ints
    logprobs: F32
    rest: F64
    scale: F64


def sources_at(
    records: TokenRecords, at: Places, made: EventMap, order: Beginnings | None
) -> Sources:
    """List the entries at each pair, and the mass beyond them."""
    assert records.entry_ids is not None
    rest = records.tail_logmass[at.record].astype(np.float64)
    count, (ids, logprobs) = lists_of(
        records.entry_count, at.record, records.entry_ids, records.entry_logprobs
    )
    if at.space.any():
        ids = made.source_of_token(ids.astype(np.int64), np.repeat(at.space, count))
    whole = Sources(count, ids, logprobs, rest, np.zeros(len(rest)))
    if order is None or not at.written.any():
        return whole
    return _restricted(whole, records, at, made, order)


def _restricted(
    whole: Sources, records: TokenRecords, at: Places, made: EventMap, order: Beginnings
) -> Sources:
    """Keep what can follow the bytes that are written already, as shares of its own mass."""
    inner = at.written > 0
    found = possible(records, at.record[inner], at.written[inner], made, order)
    scale, rest = np.zeros(len(inner)), whole.rest.copy()
    is_known = found.mass > 0
    scale[inner] = np.log(np.where(is_known, found.mass, 1))
    rest[inner] = np.where(is_known, -np.inf, 0)
    is_kept = np.ones(len(whole.source), np.bool_)
    is_inner = np.repeat(inner, whole.count)
    is_kept[is_inner] = found.is_kept
    pair = np.repeat(np.arange(len(inner)), whole.count)[is_kept]
    source, logprobs = whole.source[is_kept].astype(np.int64), whole.logprobs[is_kept].copy()
    begun = np.flatnonzero(is_inner[is_kept])
    source[begun] = made.source_behind(source[begun], at.written[pair[begun]])
    logprobs[begun] -= scale[pair[begun]].astype(np.float32)
    count = np.bincount(pair, minlength=len(inner))
    return Sources(count, source, logprobs, rest, scale)


def fitting(
    sources: Sources, records: TokenRecords, at: Places, texts: Texts, label_ids: Ints
) -> Sources:
    """Leave out what the student never writes behind its last token, and divide by what is left.

    The token that came is left in: the student has cut there, whatever it does elsewhere. Where
    next to nothing is left, nothing is known.
    """
    if texts.cuts is None or not sources.count.sum():
        return sources
    is_asked, last = _behind_tokens(at, texts.student, label_ids)
    pair = np.repeat(np.arange(len(is_asked)), sources.count)
    own = records.token_ids[at.record].astype(np.int64)[pair]
    chosen = is_asked[pair] & (sources.logprobs >= np.log(LEAST_ASKED)) & (sources.source != own)
    entry = np.flatnonzero(chosen)
    fits = texts.cuts.fits(last[pair[entry]], sources.source[entry].astype(np.int64))
    return _without(sources, pair, entry[~fits])


def own_fits(records: TokenRecords, at: Places, texts: Texts, label_ids: Ints) -> Bools:
    """Tell (P,) where a record's own token would be left in, had another one come."""
    fits = np.ones(len(at.record), np.bool_)
    if texts.cuts is not None:
        is_asked, last = _behind_tokens(at, texts.student, label_ids)
        own = records.token_ids[at.record[is_asked]].astype(np.int64)
        fits[is_asked] = texts.cuts.fits(last[is_asked], own)
    return fits


def _behind_tokens(at: Places, student: Spans, label_ids: Ints) -> tuple[Bools, Ints]:
    """Tell (P,) which labels just go on where a token of the student ended, and (P,) which one."""
    before = at.label - 1
    ends = (student.starts + student.lengths)[before]
    goes_on = (before >= 0) & (student.lengths[before] > 0) & (ends == student.starts[at.label])
    goes_on &= (student.tails[before] == 0) & (student.lengths[at.label] > 0)
    goes_on &= (at.space == PLAIN) & (at.written == 0)
    return goes_on, label_ids[before]


def _without(sources: Sources, pair: Ints, dropped: Ints) -> Sources:
    """Drop entries, and divide the others and the rest of their pair by what is left."""
    if not len(dropped):
        return sources
    pairs = len(sources.count)
    mass = np.exp(sources.logprobs[dropped], dtype=np.float64)
    left = 1 - np.bincount(pair[dropped], mass, pairs)
    is_known = left >= LEAST_LEFT
    scale = np.where(is_known, np.log(np.maximum(left, LEAST_LEFT)), 0.0)
    is_kept = is_known[pair]
    is_kept[dropped] = False
    kept = np.flatnonzero(is_kept)
    logprobs = sources.logprobs[kept] - scale[pair[kept]].astype(np.float32)
    count = np.bincount(pair[kept], minlength=pairs)
    rest = np.where(is_known, sources.rest - scale, 0.0)
    return Sources(count, sources.source[kept], logprobs, rest, sources.scale + scale)


def mixed_at(
    records: TokenRecords,
    at: Places,
    ways: Ways,
    made: EventMap,
    order: Beginnings,
    asked: tuple[Texts, Ints] | None = None,
) -> Sources:
    """List the entries of tokens that go on and of those behind a token that ended, as shares.

    Args:
        records: The records, and behind them what was asked at the labels.
        at: Where the labels stand.
        ways: The two ways in which the text can go on there.
        made: Their map.
        order: The teacher's vocabulary.
        asked: Both tokenisations and the labels, where the student's own cuts are asked for.
    """
    goes = np.flatnonzero(ways.going >= 0)
    ends = np.flatnonzero(ways.ended >= 0)
    none = np.zeros(len(goes), np.int64)
    begun = Places(ways.going[goes], at.label[goes], none, ways.written[goes])
    going = sources_at(records, begun, made, order)
    behind = Places(ways.ended[ends], at.label[ends], at.space[ends], np.zeros(len(ends), np.int64))
    ended = sources_at(records, behind, made, None)
    if asked is not None:
        ended = fitting(ended, records, behind, *asked)
    return _mixture((goes, going), (ends, ended), ways)


def _mixture(goes: tuple[Ints, Sources], ends: tuple[Ints, Sources], ways: Ways) -> Sources:
    """Weigh both parts, each with the probability of all that it holds, and divide by the sum."""
    pairs = len(ways.going)
    weights = np.full((2, pairs), -np.inf)
    weights[0, goes[0]] = np.where(goes[1].count > 0, goes[1].scale, -np.inf)
    weights[1, ends[0]] = ways.log_ended[ends[0]] + ends[1].scale
    # Where next to nothing fits behind the token that ended, nothing is known.
    is_out = np.zeros(pairs, np.bool_)
    is_out[ends[0]] = ends[1].count == 0
    weights[0, is_out] = -np.inf
    total = np.logaddexp(*weights)
    share = weights - np.where(total > -np.inf, total, 0)
    rest = np.where(total > -np.inf, -np.inf, 0.0)  # where no way is left, nothing is known
    rest[ends[0]] = ends[1].rest + share[1, ends[0]]
    owner = np.concatenate([np.repeat(at, part.count) for at, part in (goes, ends)])
    logprobs = np.concatenate(
        [
            part.logprobs + np.repeat(share[way, at], part.count).astype(np.float32)
            for way, (at, part) in enumerate((goes, ends))
        ]
    )
    source = np.concatenate([part.source.astype(np.int64) for _, part in (goes, ends)])
    order = np.argsort(owner, kind="stable")
    count = np.bincount(owner, minlength=pairs)
    return Sources(count, source[order], logprobs[order], rest, total)


def came_at(
    records: TokenRecords,
    at: Places,
    made: EventMap,
    texts: Texts,
    label_ids: Ints,
    sources: Sources,
) -> Came:
    """Find what the text shows at each pair: how much of the own token goes on to the label.

    Nothing is sent from the tail, although an own token that is no entry is known to be there: what
    is compared must not depend on what came, or else a label that the teacher did not expect would
    be asked for with next to no weight. In the rest it has the weight of the text.
    """
    pairs = np.stack([at.record, at.label], 1)
    share = label_share(pairs, texts.teacher, texts.student, records, texts.order)
    place = _own_places(records.token_ids[at.record].astype(np.int64), at, made, sources)
    is_known = ~np.isnan(share) & (place >= 0)
    logprob = np.full(len(place), np.nan)
    logprob[is_known] = sources.logprobs[place[is_known]]
    event = np.where(is_known, made.event_of(label_ids[at.label]), -1)
    return Came(event.astype(np.int32), place, logprob, np.where(is_known, share, 0.0))


def _own_places(own: Ints, at: Places, made: EventMap, sources: Sources) -> Ints:
    """Find (P,) the place of each record's own token among the sources; -1 if it is not there."""
    source = made.source_of_token(own, at.space)
    inner = np.flatnonzero(at.written > 0)
    source[inner] = made.source_behind(own[inner], at.written[inner])
    found = np.flatnonzero(np.repeat(source, sources.count) == sources.source)
    place = np.full(len(own), -1, np.int64)
    place[np.searchsorted(np.cumsum(sources.count), found, side="right")] = found
    return place
