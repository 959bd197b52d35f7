"""Align two tokenisations with plain loops, one token at a time: the definition.

`distill.alignment.align` must find the same; the tests hold it to this, and `bench_align` measures
how much faster it is. A token is (first byte, bytes, whether it is an end-of-sequence event).
"""

from collections import Counter

Token = tuple[int, int, bool]
Place = tuple[int, int]


def plain_align(teacher: list[Token], student: list[Token]) -> tuple[list[list[int]], ...]:
    """Find the shared starts, the strict pairs and the groups of two tokenisations.

    Returns:
        [teacher, student] positions of shared starts and of strict pairs; [first teacher, end,
        first student, end] of groups.
    """
    t, s = places_with_events(teacher, student), places_with_events(student, teacher)
    shared = _shared_starts(t, s)
    strict = [[i, j] for i, j in shared if t[i][1] == s[j][1]]
    return shared, strict, _groups(t, s)


def places_with_events(tokens: list[Token], others: list[Token]) -> list[Place]:
    """(start, end), with one more unit for every end-of-sequence event that both sides have."""
    theirs = Counter(start for start, length, is_eos in others if is_eos and length == 0)
    mine: Counter[int] = Counter()
    extra, places = 0, []
    for start, length, is_eos in tokens:
        width = length
        if is_eos and length == 0:
            mine[start] += 1
            width = 1 if mine[start] <= theirs[start] else 0
        places.append((start + extra, start + extra + width))
        extra += width - length
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
