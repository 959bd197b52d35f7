"""Align two tokenisations with plain loops, one token at a time: the definition.

`distill.alignment.align` must find the same; the tests hold it to this, and `bench_align` measures
how much faster it is. A token is (first byte, bytes, whether it is an end-of-sequence event), and
where it crosses (bytes in the context before, bytes behind).

What tokens may cover is a row of units. Each byte of supervised text is one, and in front of it lie
those that stand between two stretches of text: first the bytes of the longest tail of a token that
ends there, then the events that both sides have, then the bytes of the longest head of a token that
starts there.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Place = tuple[int, int]


class Token(NamedTuple):
    """A token of one side: see the module."""

    start: int
    length: int
    is_eos: bool
    head: int = 0
    tail: int = 0

    @property
    def is_event(self) -> bool:
        """Whether it is an event: an end that is not written out."""
        return self.is_eos and not self.length


class Seam:
    """The units in front of one byte: how many there are of each kind."""

    tails = events = heads = 0


def plain_align(
    teacher: Iterable[Sequence[Any]], student: Iterable[Sequence[Any]]
) -> tuple[list[list[int]], ...]:
    """Find the shared starts, the strict pairs and the groups of two tokenisations.

    Returns:
        [teacher, student] positions of shared starts and of strict pairs; [first teacher, end,
        first student, end] of groups.
    """
    t, s = places_of_both(teacher, student)
    shared = _shared_starts(t, s)
    strict = [[i, j] for i, j in shared if t[i][1] == s[j][1]]
    return shared, strict, _groups(t, s)


def places_of_both(
    teacher: Iterable[Sequence[Any]], student: Iterable[Sequence[Any]]
) -> tuple[list[Place], list[Place]]:
    """Find the unit that each token begins with, and the unit behind its last, on both sides."""
    sides = [[Token(*token) for token in side] for side in (teacher, student)]
    seams = _seams(*sides)
    t, s = (_places(side, seams) for side in sides)
    return t, s


def _seams(teacher: list[Token], student: list[Token]) -> dict[int, Seam]:
    """Find the units in front of the bytes that have some."""
    seams: dict[int, Seam] = defaultdict(Seam)
    for token in (*teacher, *student):
        if token.tail:
            end = token.start + token.length
            seams[end].tails = max(seams[end].tails, token.tail)
        if token.head:
            seams[token.start].heads = max(seams[token.start].heads, token.head)
    ends = [Counter(x.start for x in side if x.is_event) for side in (teacher, student)]
    for place in ends[0].keys() & ends[1].keys():
        seams[place].events = min(ends[0][place], ends[1][place])
    return dict(sorted(seams.items()))


def _places(tokens: list[Token], seams: dict[int, Seam]) -> list[Place]:
    last_event = {token.start: i for i, token in enumerate(tokens) if token.is_event}
    ahead, extra = list(seams.items()), 0
    ahead.reverse()

    def up_to(place: int) -> int:
        """Count the units before those that stand in front of a byte; bytes only rise."""
        nonlocal extra
        while ahead and ahead[-1][0] < place:
            seam = ahead.pop()[1]
            extra += seam.tails + seam.events + seam.heads
        return place + extra

    events: Counter[int] = Counter()  # at each place so far
    places: list[Place] = []
    for i, (start, length, is_eos, head, tail) in enumerate(tokens):
        seam = seams.get(start, Seam)
        first = up_to(start) + seam.tails
        if length:
            first += seam.events + seam.heads - head
            places.append((first, up_to(start + length) + tail))
        elif i <= last_event.get(start, -1):  # an event, or in front of one
            before = min(events[start], seam.events)
            is_one = is_eos and before < seam.events
            events[start] += is_eos
            places.append((first + before, first + before + is_one))
        else:
            places.append((first + seam.events + seam.heads,) * 2)
    for i in reversed(range(len(places) - 1)):  # one without width is right before the one behind
        if places[i][0] > places[i + 1][0]:
            places[i] = (places[i + 1][0],) * 2
    return places


def _shared_starts(t: list[Place], s: list[Place]) -> list[list[int]]:
    """Pair the last tokens of each side that begin at the same place."""
    last = {start: i for i, (start, _) in enumerate(t)}
    pairs = {start: [last[start], j] for j, (start, _) in enumerate(s) if start in last}
    return list(pairs.values())


def _groups(t: list[Place], s: list[Place]) -> list[list[int]]:
    """Find the smallest runs of tokens that begin and end together on both sides."""
    found, i, j = [], 0, 0
    while i < len(t) and j < len(s):
        if t[i][0] != s[j][0]:
            i, j = (i + 1, j) if t[i][0] < s[j][0] else (i, j + 1)
            continue
        first, start, end_t, end_s = (i, j), t[i][0], t[i][1], s[j][1]
        i, j = i + 1, j + 1
        while end_t != end_s or end_t == start:
            # The side that lags takes its next token, if no byte lies between.
            if end_t <= end_s and (end_t < end_s or end_t == start):
                if i == len(t) or t[i][0] != end_t:
                    break
                end_t, i = t[i][1], i + 1
            else:
                if j == len(s) or s[j][0] != end_s:
                    break
                end_s, j = s[j][1], j + 1
        else:
            found.append([first[0], i, first[1], j])
            # Tokens without width just before the end stay; those at the end start what follows.
    return found
