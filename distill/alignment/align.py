"""Where two tokenisations of the same supervised text agree, by bytes.

Teacher and student tokenise the same UTF-8 text, and both sides know which bytes each token covers.
That gives three kinds of agreement, from weak to strong:

    shared start   the same bytes lie before both tokens: both distributions answer one question
    group          the smallest run of tokens on both sides that starts and ends together
    strict         two tokens that start and end together

Here the teacher has a|bc|d, and the student ab|c|d:

    teacher   |a |b  c |d |       shared starts   (a, ab), (d, d)
    student   |a  b |c |d |       groups          (a bc, ab c), (d, d);   strict   (d, d)

**Width.** An end-of-sequence token has no bytes, but it is an event that both sides predict. Where
both have one at the same byte they are matched, the first with the first, and the pair is one
virtual byte wide: from there on it is an ordinary token, in its own group, strictly aligned. Every
other token without bytes (a tokenizer's lone space prefix, a second end-of-sequence) has no width.

**Of several tokens that start at one place** the last one shares the start: it has everything
before that place as its context. A token without width therefore never stands where one with bytes
starts too. It belongs to the group that starts there (its probability is part of that group's
scale), or to none.

**Holes** (a first token without a record, dropped characters, a split window) break groups: a group
has no uncovered byte on either side.

Shape legend: P = shared starts, Q = strict pairs, G = groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_MAX_BYTES_PER_PLACE = 64  # of a ruler of bytes; text has four or so


class Spans(NamedTuple):
    """The supervised tokens of one side, in order; they never overlap.

    Attributes:
        starts: (n,) int64, bytes of supervised text before each token, never falling.
        lengths: (n,) int64, bytes of each token.
        is_eos: (n,) bool, True for an end-of-sequence token.
    """

    starts: Ints
    lengths: Ints
    is_eos: npt.NDArray[np.bool_]


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
    """All agreements between two tokenisations of one text, in linear time.

    Every byte of the text is a place in a table, so nothing is sorted or searched for.
    """
    teacher_matched, student_matched = _match_events(teacher, student)
    t_starts, t_ends = _places(teacher, teacher_matched)
    s_starts, s_ends = _places(student, student_matched)
    ruler, (t_first, t_last, s_first, s_last) = _on_a_ruler(t_starts, t_ends, s_starts, s_ends)

    t_edge, s_edge = _marked(t_first, ruler.length), _marked(s_first, ruler.length)
    places = np.flatnonzero(t_edge & s_edge)  # both sides begin a token here
    pairs = _columns(_last_at(places, t_first, ruler), _last_at(places, s_first, ruler))
    ends_too = t_ends[pairs[:, 0]] == s_ends[pairs[:, 1]]

    t_edge[t_last] = s_edge[s_last] = True  # now: begins or ends
    cuts = np.flatnonzero(t_edge & s_edge)
    t_at, s_at = _before(cuts, t_first, t_last, ruler), _before(cuts, s_first, s_last, ruler)
    between = np.diff(ruler.bytes_at(cuts))
    is_whole = (_covered(t_starts, t_ends, t_at) == between) & (
        _covered(s_starts, s_ends, s_at) == between
    )
    groups = _columns(t_at[:-1], t_at[1:], s_at[:-1], s_at[1:])
    return Alignment(pairs, pairs.compress(ends_too, 0), groups.compress(is_whole, 0))


def align_many(sides: Sequence[tuple[Spans, Spans]]) -> list[Alignment]:
    """What `align` finds of each (teacher, student), of all at once.

    The texts are laid one behind another, a byte apart: nobody covers that byte, so nothing reaches
    across. A short text costs mostly numpy's calls, which all of them now share.
    """
    ends = [max(map(_end, each), default=0) for each in sides]
    tokens = np.array([[len(t.starts), len(s.starts)] for t, s in sides]).reshape(-1, 2)
    if len(sides) < 2 or (ends > _MAX_BYTES_PER_PLACE * tokens.sum(1)).any():
        return [align(*each) for each in sides]  # not every byte has room on a ruler
    behind = np.cumsum([0, *(end + 1 for end in ends[:-1])])
    found = align(
        _laid_out([t for t, _ in sides], behind), _laid_out([s for _, s in sides], behind)
    )
    first = np.zeros_like(tokens)  # of each text, on each side
    np.cumsum(tokens[:-1], axis=0, out=first[1:])
    return [
        Alignment(*parts)
        for parts in zip(
            _taken_apart(found.shared_starts, first),
            _taken_apart(found.strict, first),
            _taken_apart(found.groups, np.repeat(first, 2, axis=1)),
            strict=True,
        )
    ]


def _taken_apart(rows: Ints, first: Ints) -> list[Ints]:
    """The rows of each text, counting its own tokens. The first column never falls."""
    cuts = np.searchsorted(rows[:, 0], first[:, 0])
    own = rows - np.repeat(first, np.diff(cuts, append=len(rows)), axis=0)
    stops = [*cuts[1:].tolist(), len(rows)]
    return [own[a:b] for a, b in zip(cuts.tolist(), stops, strict=True)]


def _end(spans: Spans) -> int:
    """The byte behind the last token."""
    return int(spans.starts[-1] + spans.lengths[-1]) if len(spans.starts) else 0


def _laid_out(texts: Sequence[Spans], offsets: Ints) -> Spans:
    sizes = [len(each.starts) for each in texts]
    starts, lengths, is_eos = (np.concatenate(each) for each in zip(*texts, strict=True))
    return Spans(starts + np.repeat(offsets, sizes), lengths, is_eos)


class _Ruler(NamedTuple):
    """So many places in a row: bytes from `first` on, or those of `marks` where there are any."""

    length: int
    first: int
    marks: Ints | None

    def bytes_at(self, places: Ints) -> Ints:
        return places + self.first if self.marks is None else self.marks[places]


def _on_a_ruler(*places: Ints) -> tuple[_Ruler, list[Ints]]:
    """A ruler with all the places on it, none of which falls, and where each is on that ruler.

    It has every byte from the first to the last place; or, where few places lie far apart, only the
    places themselves, so that no file can ask for more memory than it has tokens.
    """
    filled = [each for each in places if len(each)]
    first = min((int(each[0]) for each in filled), default=0)
    length = max((int(each[-1]) for each in filled), default=-1) + 1 - first
    if length <= _MAX_BYTES_PER_PLACE * sum(map(len, places)):
        return _Ruler(length, first, None), [each - first if first else each for each in places]
    marks = np.unique(np.concatenate(places))
    return _Ruler(len(marks), 0, marks), [np.searchsorted(marks, each) for each in places]


def _marked(places: Ints, length: int) -> npt.NDArray[np.bool_]:
    """(length,) of a ruler, True where one of the places is."""
    marked = np.zeros(length, np.bool_)
    marked[places] = True
    return marked


# Tables of a place each are filled where tokens are and read only there, so the rest may hold
# anything. Of several values for one place numpy keeps the last.


def _last_at(places: Ints, firsts: Ints, ruler: _Ruler) -> Ints:
    """The last token that starts at each of the places; one does."""
    table = np.empty(ruler.length, np.int64)
    table[firsts] = np.arange(len(firsts))
    return table[places]


def _before(places: Ints, firsts: Ints, lasts: Ints, ruler: _Ruler) -> Ints:
    """How many tokens start before each of the places; one starts or ends there."""
    table = np.empty(ruler.length, np.int64)
    tokens = np.arange(len(firsts))
    table[lasts] = tokens + 1
    # Where tokens start, also one without width that ends there, those before the first of them.
    table[firsts[::-1]] = tokens[::-1]
    return table[places]


def _match_events(teacher: Spans, student: Spans) -> tuple[Ints, Ints]:
    """Indices of the end-of-sequence events that both sides have, the j-th of a byte with its j-th.

    Returns:
        Two ascending arrays of equal length, (teacher's, student's).
    """
    teacher_events, teacher_keys = _events(teacher)
    student_events, student_keys = _events(student)
    if not len(teacher_events) or not len(student_events):
        return teacher_events[:0], student_events[:0]
    # One integer a (byte, number at that byte); the radix is above every number on either side.
    radix = np.array([max(len(teacher_events), len(student_events)), 1])
    _, in_teacher, in_student = np.intersect1d(
        teacher_keys @ radix, student_keys @ radix, assume_unique=True, return_indices=True
    )
    return teacher_events[in_teacher], student_events[in_student]


def _events(spans: Spans) -> tuple[Ints, Ints]:
    """Zero-byte EOS tokens: their indices, and (byte, number among the events at that byte)."""
    events = np.flatnonzero(spans.is_eos & (spans.lengths == 0))
    at = spans.starts[events]
    number = np.arange(len(events)) - np.searchsorted(at, at, side="left")
    return events, np.stack([at, number], axis=1)


def _places(spans: Spans, matched: Ints) -> tuple[Ints, Ints]:
    """Starts and ends on a ruler in which every matched event is one byte wide."""
    width = spans.lengths.astype(np.int64)  # a copy: the caller's lengths stay as they are
    width[matched] = 1
    one_wide = np.zeros(len(width) + 1, np.int64)
    one_wide[matched + 1] = 1
    starts = spans.starts + np.cumsum(one_wide)[:-1]
    return starts, starts + width


def _covered(starts: Ints, ends: Ints, at: Ints) -> Ints:
    """Bytes of the tokens from each of `at` to the next.

    No token crosses a cut, since a cut is a boundary on both sides: comparing widths is enough.
    """
    before = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(ends - starts, out=before[1:])
    return np.diff(before[at])


def _columns(*columns: Ints) -> Ints:
    """One array of them. (`np.stack` along the last axis takes six times as long.)"""
    found = np.empty((len(columns[0]), len(columns)), np.int64)
    for i, column in enumerate(columns):
        found[:, i] = column
    return found
