"""Pairs of tokens by dynamic time warping over what they write, as CDM has them.

Of a teacher's token i and a student's j, d is their edit distance over the bytes of both, and w the
teacher's entropy there over that of a uniform distribution: tokens that are sure may be passed over
at little cost. A path leads from the first of both to the last of both, each step to the next token
on one side, or on both, and costs what it meets:

    R[i, j] = w_i d_ij + min(R[i-1, j-1], R[i-1, j], R[i, j-1])

The path of least cost is taken; of several that of the least sum of d, which then takes a step on
both sides where it can. Costs are whole millionths, so that equal ones are equal on every machine.
A row of R is a running minimum, so a sequence takes a few calls of numpy for each of its tokens.
Long ones are cut, where both sides begin a token: the cost is linear in the length.

Of the teacher's tokens that the path puts beside one of the student's, the one that is most like it
is its pair; of several the first.

Shape legend: n, m = tokens of teacher and student; L = steps of a path; P = pairs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from distill.alignment.align import Alignment, Spans
from distill.alignment.edit_distance import distances
from distill.alignment.runs import Ints

Floats = npt.NDArray[np.float64]

#: Tokens of either side behind which a sequence is cut; more than the longest have no pairs.
BLOCK, LONGEST = 512, 4096
#: Costs are in these parts of one; the weighed one counts first, and both fit in 63 bits.
_WEIGHED, _PLAIN, _SHIFT = 2**20, 2**10, 2**24


def warped(
    teacher: Spans,
    student: Spans,
    alignment: Alignment,
    written: tuple[Sequence[bytes], Sequence[bytes]],
    weight_n: Floats,
) -> Ints:
    """Pair (P, 2) every label with one of the teacher's tokens, in the order of the labels.

    Args:
        teacher: Its records; an end meets nothing but an end.
        student: Its labels, likewise.
        alignment: Of both, where long sequences are cut.
        written: What each token of either side writes.
        weight_n: What a token of the teacher costs, 0 to 1.
    """
    parts = [np.zeros((0, 2), np.int64)]
    for t, t_stop, s, s_stop in _blocks(len(teacher.starts), len(student.starts), alignment):
        if max(t_stop - t, s_stop - s) > LONGEST:
            continue
        distance_nm = _distances(
            written[0][t:t_stop],
            written[1][s:s_stop],
            teacher.is_eos[t:t_stop],
            student.is_eos[s:s_stop],
        )
        path = cheapest_path(_costs(distance_nm, weight_n[t:t_stop]))
        parts.append(_most_alike(path, distance_nm) + np.array([t, s]))
    return np.concatenate(parts)


def cheapest_path(cost_nm: Ints) -> Ints:
    """Find (L, 2) the path of least cost, from the first cell to the last; whole numbers."""
    n, m = cost_nm.shape
    total_nm = np.empty_like(cost_nm)
    total_nm[0] = np.cumsum(cost_nm[0])
    before_m = np.empty(m, np.int64)
    for i in range(1, n):
        above_m = total_nm[i - 1]
        before_m[0] = above_m[0]
        np.minimum(above_m[1:], above_m[:-1], out=before_m[1:])
        # From k on the path goes along the row: min over k <= j of before_k + cost_k + ... + cost_j
        sum_m = np.cumsum(cost_nm[i])
        before_m -= sum_m - cost_nm[i]
        np.add(np.minimum.accumulate(before_m), sum_m, out=total_nm[i])
    path = [(n - 1, m - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        steps = [(a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
        path.append(min(steps, key=lambda cell: int(total_nm[cell])))
    return np.array(path[::-1], np.int64)


def _blocks(n: int, m: int, alignment: Alignment) -> Iterator[tuple[int, int, int, int]]:
    """Cut both sides where both begin a token, after `BLOCK` of either side's or more."""
    t = s = 0
    for t_next, s_next in alignment.shared_starts.tolist():
        if max(t_next - t, s_next - s) >= BLOCK and t_next > t and s_next > s:
            yield t, t_next, s, s_next
            t, s = t_next, s_next
    if t < n and s < m:
        yield t, n, s, m


def _distances(
    theirs: Sequence[bytes],
    ours: Sequence[bytes],
    their_ends: npt.NDArray[np.bool_],
    our_ends: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """Compute (n, m) the distances of tokens: those of equal bytes are compared once."""
    n_strings, n_which = _distinct(theirs)
    m_strings, m_which = _distinct(ours)
    found = distances(n_strings, m_strings)[n_which[:, None], m_which]
    either = np.logical_or.outer(their_ends, our_ends)
    both = np.logical_and.outer(their_ends, our_ends)
    return np.where(either, np.where(both, 0, 1), found).astype(np.float32)


def _distinct(strings: Sequence[bytes]) -> tuple[list[bytes], Ints]:
    numbers = {each: i for i, each in enumerate(dict.fromkeys(strings))}
    return list(numbers), np.array([numbers[each] for each in strings], np.int64)


def _costs(distance_nm: npt.NDArray[np.float32], weight_n: Floats) -> Ints:
    weighed = np.rint(distance_nm * weight_n[:, None] * _WEIGHED).astype(np.int64)
    return weighed * _SHIFT + np.rint(distance_nm * _PLAIN).astype(np.int64)


def _most_alike(path: Ints, distance_nm: npt.NDArray[np.float32]) -> Ints:
    """Choose (m, 2) of the teacher's tokens beside each of the student's the most alike one."""
    t, s = path.T
    path = path[np.lexsort((t, distance_nm[t, s], s))]
    is_first = np.diff(path[:, 1], prepend=-1) > 0
    return path[is_first]
