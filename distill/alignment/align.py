"""Where two tokenisations of the same supervised text agree, by bytes.

Teacher and student tokenise the same UTF-8 text, and both sides know which bytes each token covers.
That gives three kinds of agreement, from weak to strong:

    shared start   both models have read the same bytes: both distributions answer one question
    group          the smallest run of tokens on both sides that starts and ends together
    strict         two tokens that start and end together

Here the teacher has a|bc|d, and the student ab|c|d:

    teacher   |a |b  c |d |       shared starts   (a, ab), (d, d)
    student   |a  b |c |d |       groups          (a bc, ab c), (d, d);   strict   (d, d)

**Width.** An end-of-sequence token has no bytes, but it is an event that both sides predict. Where
both have one at the same byte they are matched, the first with the first, and the pair is one
virtual byte wide: from there on it is an ordinary token, in its own group, strictly aligned. Every
other token without bytes (a tokenizer's lone space prefix, a second end-of-sequence) has no width.

**Tokens that cross.** Supervised text comes in stretches, such as answers, with context between. A
token that begins in the context before its stretch has read less than one that begins where the
stretch does, though both have the same supervised bytes before them. So where tokens cross, the
place between two stretches is as wide as what they write there: first the longest tail of a token
that ends there on either side, then the events, then the longest head of one that starts there.
With the prompt `A: ` and the answer `42` the student's ` 42` begins one byte before the answer:

    teacher   |A|:| |4|2|       supervised: 4, 2         shares no start with ` 42`; no group, since
    student   |A|:| 4 2|        supervised: ` 42`        only the student's side covers the space

Tokens that cross alike are paired like all others.

**Of several tokens that start at one place** the last one shares the start: it has everything
before that place as its context. A token without width therefore never stands where one with bytes
starts too. It belongs to the group that starts there (its probability is part of that group's
scale), or to none.

**Holes** (a first token without a record, dropped characters, a split window) break groups: a group
has no uncovered byte on either side.

Shape legend: P = shared starts, Q = strict pairs, G = groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MAX_BYTES_PER_PLACE = 64  # of a ruler of bytes; text has four or so


def _no_ints() -> Ints:
    return np.zeros(0, np.int64)


def _no_bools() -> Bools:
    return np.zeros(0, np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """The supervised tokens of one side, in order; they never overlap.

    What is not given is zero, or for `is_verbatim` true, for every token.

    Attributes:
        starts: (n,) int64, bytes of supervised text before each token, never falling.
        lengths: (n,) int64, bytes of each token in its stretch of supervised text.
        is_eos: (n,) bool, True for an end-of-sequence token.
        heads: (n,) int64, bytes of the token in context before its supervised bytes. A token
            without supervised bytes has neither head nor tail.
        tails: (n,) int64, bytes of the token behind its stretch.
        has_added_space: (n,) bool, it writes one space in front that the text does not have.
        is_verbatim: (n,) bool, what it writes, less an added space, is the text that it covers,
            with head and tail.
    """

    starts: Ints
    lengths: Ints
    is_eos: Bools
    heads: Ints = field(default_factory=_no_ints)
    tails: Ints = field(default_factory=_no_ints)
    has_added_space: Bools = field(default_factory=_no_bools)
    is_verbatim: Bools = field(default_factory=_no_bools)

    def __post_init__(self) -> None:
        """Fill what was not given."""
        n = len(self.starts)
        for name in ("heads", "tails", "has_added_space", "is_verbatim"):
            given = getattr(self, name)
            if len(given) != n:
                default = np.full(n, name == "is_verbatim", given.dtype)
                object.__setattr__(self, name, default)


class Alignment(NamedTuple):
    """Agreements between two sides, in text order. Every index counts that side's tokens.

    Attributes:
        shared_starts: (P, 2) int64, (teacher, student).
        strict: (Q, 2) int64, (teacher, student); a subset of `shared_starts`.
        groups: (G, 4) int64, (teacher first, teacher stop, student first, student stop).
    """

    shared_starts: Ints
    strict: Ints
    groups: Ints


def align(teacher: Spans, student: Spans) -> Alignment:
    """Find all agreements between two tokenisations of one text, in linear time.

    Every byte of the text is a place in a table, so nothing is sorted or searched for: tokens mark
    the places where they begin and end, and what both sides have marked is an agreement.
    """
    teacher_matched, student_matched = _match_events(teacher, student)
    seams = _seams(teacher, student)
    t_starts, t_ends = _places(teacher, teacher_matched, seams)
    s_starts, s_ends = _places(student, student_matched, seams)
    ruler, (t_first, t_last, s_first, s_last) = _on_a_ruler(t_starts, t_ends, s_starts, s_ends)

    t_begins, s_begins = _marked(ruler, t_first), _marked(ruler, s_first)
    places = np.flatnonzero(t_begins & s_begins)
    pairs = _columns(_last_at(places, t_first, ruler), _last_at(places, s_first, ruler))
    ends_too = t_ends[pairs[:, 0]] == s_ends[pairs[:, 1]]

    t_boundary, s_boundary = _marked(ruler, t_first, t_last), _marked(ruler, s_first, s_last)
    cuts = np.flatnonzero(t_boundary & s_boundary)
    t_at, s_at = _before(cuts, t_first, t_last, ruler), _before(cuts, s_first, s_last, ruler)
    between = np.diff(ruler.bytes_at(cuts))
    is_whole = (_covered(t_starts, t_ends, t_at) == between) & (
        _covered(s_starts, s_ends, s_at) == between
    )
    groups = _columns(t_at[:-1], t_at[1:], s_at[:-1], s_at[1:])
    return Alignment(pairs, pairs.compress(ends_too, 0), groups.compress(is_whole, 0))


def align_many(sides: Sequence[tuple[Spans, Spans]]) -> list[Alignment]:
    """Align each (teacher, student) as `align` does, all of them in one pass.

    The texts are laid one behind another, a byte apart: no token covers that byte, so no agreement
    reaches across. A short text costs mostly numpy's calls, which all of them now share.
    """
    ends = [max(map(_end, pair), default=0) for pair in sides]
    tokens = np.array([[len(t.starts), len(s.starts)] for t, s in sides]).reshape(-1, 2)
    if len(sides) < 2 or (ends > _MAX_BYTES_PER_PLACE * tokens.sum(1)).any():
        return [align(*pair) for pair in sides]  # not every byte has room on a ruler
    offsets = np.cumsum([0, *(end + 1 for end in ends[:-1])])
    joined = align(
        _laid_out([t for t, _ in sides], offsets), _laid_out([s for _, s in sides], offsets)
    )
    first = np.zeros_like(tokens)  # the first token of each text, on each side
    np.cumsum(tokens[:-1], axis=0, out=first[1:])
    return [
        Alignment(*parts)
        for parts in zip(
            _taken_apart(joined.shared_starts, first),
            _taken_apart(joined.strict, first),
            _taken_apart(joined.groups, np.repeat(first, 2, axis=1)),
            strict=True,
        )
    ]


def _taken_apart(rows: Ints, first: Ints) -> list[Ints]:
    """Split rows of token numbers by text, and count each from that text's first token.

    The first column must be ascending.
    """
    cuts = np.searchsorted(rows[:, 0], first[:, 0])
    renumbered = rows - np.repeat(first, np.diff(cuts, append=len(rows)), axis=0)
    stops = [*cuts[1:].tolist(), len(rows)]
    return [renumbered[a:b] for a, b in zip(cuts.tolist(), stops, strict=True)]


def _end(spans: Spans) -> int:
    """Return the byte behind the last token, 0 without tokens."""
    return int(spans.starts[-1] + spans.lengths[-1]) if len(spans.starts) else 0


def _laid_out(texts: Sequence[Spans], offsets: Ints) -> Spans:
    """Join the tokens of several texts into one text, each moved by its offset in bytes."""
    sizes = [len(text.starts) for text in texts]
    joined = {
        column.name: np.concatenate([getattr(text, column.name) for text in texts])
        for column in fields(Spans)
    }
    joined["starts"] = joined["starts"] + np.repeat(offsets, sizes)
    return Spans(**joined)


class _Ruler(NamedTuple):
    """A row of `length` places that stand for bytes: those from `first` on, or those in `marks`."""

    length: int
    first: int
    marks: Ints | None

    def bytes_at(self, places: Ints) -> Ints:
        return places + self.first if self.marks is None else self.marks[places]


def _on_a_ruler(*places: Ints) -> tuple[_Ruler, list[Ints]]:
    """Make a ruler that has all the bytes on it, and find the place of each.

    It has every byte from the first to the last; or, where few bytes lie far apart, only those
    bytes themselves, so that no file can ask for more memory than it has tokens.

    Args:
        places: Ascending arrays of bytes.
    """
    filled = [bytes_n for bytes_n in places if len(bytes_n)]
    first = min((int(bytes_n[0]) for bytes_n in filled), default=0)
    length = max((int(bytes_n[-1]) for bytes_n in filled), default=-1) + 1 - first
    if length <= _MAX_BYTES_PER_PLACE * sum(map(len, places)):
        on_ruler = [bytes_n - first if first else bytes_n for bytes_n in places]
        return _Ruler(length, first, None), on_ruler
    marks = np.unique(np.concatenate(places))
    on_ruler = [np.searchsorted(marks, bytes_n) for bytes_n in places]
    return _Ruler(len(marks), 0, marks), on_ruler


def _marked(ruler: _Ruler, *places: Ints) -> Bools:
    """Mark places of a ruler: (length,), True at each of them."""
    marked = np.zeros(ruler.length, np.bool_)
    for places_n in places:
        marked[places_n] = True
    return marked


# A table has one entry for each place of the ruler. It is filled where tokens are and read only
# there, so the rest may hold anything. Of several values for one place numpy keeps the last.


def _last_at(places: Ints, firsts: Ints, ruler: _Ruler) -> Ints:
    """Find the last token that starts at each of the places; at least one does."""
    table = np.empty(ruler.length, np.int64)
    table[firsts] = np.arange(len(firsts))
    return table[places]


def _before(places: Ints, firsts: Ints, lasts: Ints, ruler: _Ruler) -> Ints:
    """Count the tokens that start before each of the places; at least one starts or ends there."""
    table = np.empty(ruler.length, np.int64)
    tokens = np.arange(len(firsts))
    table[lasts] = tokens + 1
    # Where tokens start (one without width also ends there), the count stops before the first.
    table[firsts[::-1]] = tokens[::-1]
    return table[places]


def _match_events(teacher: Spans, student: Spans) -> tuple[Ints, Ints]:
    """Match the end-of-sequence events that both sides have: at one byte, the j-th with the j-th.

    Returns:
        Two ascending arrays of token numbers, of equal length: (teacher's, student's).
    """
    teacher_events, teacher_keys = _events(teacher)
    student_events, student_keys = _events(student)
    if not len(teacher_events) or not len(student_events):
        return teacher_events[:0], student_events[:0]
    # One integer for each (byte, number at that byte); the radix exceeds every such number.
    radix = np.array([max(len(teacher_events), len(student_events)), 1])
    _, in_teacher, in_student = np.intersect1d(
        teacher_keys @ radix, student_keys @ radix, assume_unique=True, return_indices=True
    )
    return teacher_events[in_teacher], student_events[in_student]


def _events(spans: Spans) -> tuple[Ints, Ints]:
    """List the EOS tokens of zero bytes: their indices, and (byte, number among those there)."""
    events = np.flatnonzero(spans.is_eos & (spans.lengths == 0))
    at = spans.starts[events]
    number = np.arange(len(events)) - np.searchsorted(at, at, side="left")
    return events, np.stack([at, number], axis=1)


class _Seams(NamedTuple):
    """Places between stretches of supervised text that some token crosses.

    Attributes:
        at: (C,) supervised bytes before each, ascending.
        tails: (C,) bytes of the longest tail there, on either side.
        heads: (C,) bytes of the longest head there.
        before: (C + 1,) the width of all seams before each, and of all.
    """

    at: Ints
    tails: Ints
    heads: Ints
    before: Ints


def _seams(teacher: Spans, student: Spans) -> _Seams | None:
    """Find the places that tokens of either side cross; None if there are none."""
    heads = [(side.starts, side.heads) for side in (teacher, student)]
    tails = [(side.starts + side.lengths, side.tails) for side in (teacher, student)]
    if not any(bytes_n.any() for _, bytes_n in heads + tails):
        return None
    at = np.unique(np.concatenate([place_n[bytes_n > 0] for place_n, bytes_n in heads + tails]))
    widths = []
    for crossing in (tails, heads):
        longest = np.zeros(len(at), np.int64)
        for place_n, bytes_n in crossing:
            crosses = bytes_n > 0
            np.maximum.at(longest, np.searchsorted(at, place_n[crosses]), bytes_n[crosses])
        widths.append(longest)
    longest_tails, longest_heads = widths
    before = np.append(0, np.cumsum(longest_tails + longest_heads))
    return _Seams(at, longest_tails, longest_heads, before)


def _places(spans: Spans, matched: Ints, seams: _Seams | None) -> tuple[Ints, Ints]:
    """Compute where tokens start and end once events and seams are as wide as they are."""
    width = spans.lengths.astype(np.int64)  # a copy: the caller's lengths stay as they are
    width[matched] = 1
    one_wide = np.zeros(len(width) + 1, np.int64)
    one_wide[matched + 1] = 1
    starts = spans.starts + np.cumsum(one_wide)[:-1]
    if seams is None:
        return starts, starts + width
    has_bytes, ends = spans.lengths > 0, spans.starts + spans.lengths
    behind = starts + spans.lengths + seams.before[np.searchsorted(seams.at, ends)] + spans.tails
    seam = np.searchsorted(seams.at, spans.starts)
    starts += seams.before[seam] - spans.heads
    at_seam = np.flatnonzero(np.isin(spans.starts, seams.at))
    starts[at_seam] += seams.tails[seam[at_seam]]
    of_next = at_seam[_is_behind_events(spans)[at_seam]]
    starts[of_next] += seams.heads[seam[of_next]]
    # A token without width stands right before the one behind it.
    starts = np.minimum.accumulate(starts[::-1])[::-1]
    return starts, np.where(has_bytes, behind, starts + width)


def _is_behind_events(spans: Spans) -> Bools:
    """Tell which tokens (n,) begin a stretch where they stand, with no event at or behind them."""
    is_event = spans.is_eos & (spans.lengths == 0)
    events = np.append(spans.starts[is_event], -1)
    following = events[np.cumsum(is_event) - is_event]  # of the event at it or behind it
    is_behind: Bools = (spans.lengths > 0) | (following != spans.starts)
    return is_behind


def _covered(starts: Ints, ends: Ints, at: Ints) -> Ints:
    """Add up the bytes of the tokens from each of `at` to the next.

    No token crosses a cut, since a cut is a boundary on both sides: comparing widths is enough.
    """
    before = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(ends - starts, out=before[1:])
    return np.diff(before[at])


def _columns(*columns: Ints) -> Ints:
    """Lay columns side by side. (`np.stack` along the last axis takes six times as long.)"""
    table = np.empty((len(columns[0]), len(columns)), np.int64)
    for i, column in enumerate(columns):
        table[:, i] = column
    return table
