"""Sends a teacher's entries to a student's tokens: masses that meet at one token are added up.

No other step costs as much time for a token, so nothing is done twice. Where no two tokens can
meet (one tokenizer; nearly all of a strict map) it is one look-up. Else the entries of a record are
sorted by their student token, each as one integer of token and place: a short sort, of which a
processor does many together. Only masses that meet are computed from their logarithms.

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
    """The entries of records by student token, ascending in a record where any were added up.

    Attributes:
        count: (P,) entries of each record.
        ids: (sum of counts,) student tokens, distinct in a record.
        logmass: (sum of counts,) log of the mass that was sent to each.
        left_out: (P,) float64, mass of entries without a student token; None where all have one.
    """

    count: Ints
    ids: Ids
    logmass: F32
    left_out: F64 | None


class VocabularyMap:
    """A map from teacher ids to student ids; -1 is no student token.

    Args:
        ids: (V_T,) int32, the student id of each teacher id.
    """

    def __init__(self, ids: Ids) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def shares(self) -> npt.NDArray[np.bool_]:
        """Mark (V_T,) the teacher's tokens that share their student token with another one."""
        targets, which, count = np.unique(self.ids, return_inverse=True, return_counts=True)
        is_shared: npt.NDArray[np.bool_] = ((targets >= 0) & (count > 1))[which]
        return is_shared

    @cached_property
    def _can_meet(self) -> bool:
        return bool(self.shares.any())

    def with_ends(self, teacher_ids: list[int], student_id: int) -> "VocabularyMap":
        """Copy this map, with the teacher's end-of-text tokens sent to one student token."""
        ids = self.ids.copy()
        ids[teacher_ids] = student_id
        return VocabularyMap(ids)

    def send(self, count_P: Ints, ids_M: npt.NDArray[np.uint32], logprobs_M: F32) -> Sent:
        """Send the entries of some records to the student's tokens.

        Args:
            count_P: Number of entries of each record.
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
    """Send entries of which some share a student token, and add those up."""
    target_PW, logprobs_PW = _as_rows(count_P, target_M, logprobs_M)
    rows, width = target_PW.shape
    if not target_PW.size:
        return Sent(count_P, target_M, logprobs_M, None)
    none = int(target_PW.max()) + 1  # sorts entries without a student token behind all others
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


def _as_rows(count_P: Ints, target_M: Ids, logprobs_M: F32) -> tuple[Ids, F32]:
    """Lay both out as (P, W); padding has no student token and no mass."""
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
    probabilities: F64 = np.exp(logprobs, dtype=np.float64)
    return probabilities
