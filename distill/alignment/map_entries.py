"""Sends a teacher's entries to a student's tokens: masses that meet at one token are added up.

This is the most work of all that is done for a token, so nothing is done twice. Where no two
tokens can meet (one tokenizer; nearly all of a strict map) it is one look-up. Else entries of
a record are sorted by where they go, each as one integer of target and place, a short sort that
processors do many of at once; only masses that meet are ever made of their logarithms.

Shape legend: P = records, M = entries of all of them, W = most entries of one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from distill.alignment.runs import Ints, runs

Ids = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sent:
    """Entries by student token, ascending within a record where any were added up.

    Attributes:
        count: (P,) of each record.
        ids: (sum of counts,) student tokens, distinct in a record.
        logmass: (sum of counts,) log of the mass that was sent to each.
        left_out: (P,) float64, mass of what has no token; None where everything has one.
    """

    count: Ints
    ids: Ids
    logmass: F32
    left_out: F64 | None


class VocabularyMap:
    """Teacher id -> student id, or -1.

    Args:
        ids: (V_T,) int32.
    """

    def __init__(self, ids: Ids) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def shares(self) -> npt.NDArray[np.bool_]:
        """(V_T,) of the teacher's tokens, those that go where another goes, too."""
        targets, which, count = np.unique(self.ids, return_inverse=True, return_counts=True)
        found: npt.NDArray[np.bool_] = ((targets >= 0) & (count > 1))[which]
        return found

    @cached_property
    def _can_meet(self) -> bool:
        return bool(self.shares.any())

    def with_ends(self, teacher_ids: list[int], student_id: int) -> "VocabularyMap":
        """This map, but for the teacher's ends of a text, which go to one token."""
        ids = self.ids.copy()
        ids[teacher_ids] = student_id
        return VocabularyMap(ids)

    def send(self, count_P: Ints, ids_M: npt.NDArray[np.uint32], logprobs_M: F32) -> Sent:
        """The entries of some records by the student's tokens.

        Args:
            count_P: Entries of each record.
            ids_M: The teacher's tokens, flat.
            logprobs_M: Their log-probabilities.
        """
        target_M = self.ids.take(ids_M)
        if self._can_meet and self.shares.take(ids_M).any():
            return _added_up(count_P, target_M, logprobs_M)
        is_sent_M = target_M >= 0
        if is_sent_M.all():
            return Sent(count_P, target_M, logprobs_M, None)
        owner_M = np.repeat(np.arange(len(count_P)), count_P)
        left = _totals(owner_M[~is_sent_M], _exp(logprobs_M[~is_sent_M]), len(count_P))
        count = np.bincount(owner_M[is_sent_M], minlength=len(count_P))
        return Sent(count, target_M[is_sent_M], logprobs_M[is_sent_M], left)


def _added_up(count_P: Ints, target_M: Ids, logprobs_M: F32) -> Sent:
    target_PW, logprobs_PW = _as_rows(count_P, target_M, logprobs_M)
    rows, width = target_PW.shape
    if not target_PW.size:
        return Sent(count_P, target_M, logprobs_M, None)
    none = int(target_PW.max()) + 1  # where what has no token goes: behind all others
    sorted_M, place_M = _sorted_rows(np.where(target_PW < 0, none, target_PW), none)
    logprobs_M = logprobs_PW.reshape(-1)[place_M]
    start, length = _runs_of_equals(sorted_M, width)
    target, row, logmass = sorted_M[start], start // width, logprobs_M[start]
    is_sent = target < none

    met = np.flatnonzero((length > 1) | ~is_sent)  # all others are as they were
    run, member = runs(start[met], start[met] + length[met])
    mass = _totals(run, _exp(logprobs_M[member]), len(met))
    left_out = _totals(row[met], np.where(is_sent[met], 0.0, mass), rows)
    with np.errstate(divide="ignore"):  # log 0 = -inf: no mass at all
        logmass[met] = np.log(mass)
    count = np.bincount(row[is_sent], minlength=rows)
    return Sent(count, target[is_sent], logmass[is_sent], left_out)


def _sorted_rows(target_PW: Ids, largest: int) -> tuple[Ids, npt.NDArray[np.intp]]:
    """Every row sorted, all in one line, and where in that line each member was before."""
    rows, width = target_PW.shape
    bits = int(width - 1).bit_length()  # a place, below the target: one integer is the whole order
    dtype = np.int32 if (largest + 1) << bits < 2**31 else np.int64
    key_PW = target_PW.astype(dtype) << np.array(bits, dtype)
    key_PW |= np.arange(width, dtype=dtype)
    key_PW.sort(axis=1)
    place_PW = (key_PW & ((1 << bits) - 1)).astype(np.intp)
    place_PW += np.arange(0, rows * width, width)[:, None]
    return (key_PW >> np.array(bits, dtype)).astype(np.int32).reshape(-1), place_PW.reshape(-1)


def _runs_of_equals(sorted_M: Ids, width: int) -> tuple[Ints, Ints]:
    """First and length of every run of one target in one row of so many."""
    is_first = np.empty(len(sorted_M), bool)
    np.not_equal(sorted_M[1:], sorted_M[:-1], out=is_first[1:])
    is_first[::width] = True
    start = np.flatnonzero(is_first)
    return start, np.diff(start, append=len(sorted_M))


def _as_rows(count_P: Ints, target_M: Ids, logprobs_M: F32) -> tuple[Ids, F32]:
    """Both as rectangles; what is missing goes nowhere and has no mass."""
    width = int(count_P.max(initial=0))
    if len(target_M) == len(count_P) * width:
        return target_M.reshape(len(count_P), width), logprobs_M.reshape(len(count_P), width)
    is_there = np.arange(width) < count_P[:, None]
    target_PW = np.full(is_there.shape, -1, np.int32)
    logprobs_PW = np.full(is_there.shape, -np.inf, np.float32)
    target_PW[is_there], logprobs_PW[is_there] = target_M, logprobs_M
    return target_PW, logprobs_PW


def _totals(owner: Ints, mass: F64, count: int) -> F64:
    return np.bincount(owner, mass, count).astype(np.float64, copy=False)


def _exp(logprobs: F32) -> F64:
    found: F64 = np.exp(logprobs, dtype=np.float64)
    return found
