"""Summarise rows of full logits in numpy: what a teacher pass computes on its device.

The formulas are those of `capture/teacher/summary.py`, with one exponential for the log-normaliser,
the tail and the entropy. With E the entries, r the largest logit of the rest R, and y = z - r:

    log Z     = log(sum_E e^(z - z_1) + e^(r - z_1) sum_R e^y) + z_1
    tail      = log(sum_R e^y) + r - log Z
    entropy   = - sum_E p log p - e^(r - log Z) sum_R e^y y - (r - log Z) e^tail

Shape legend: V = vocabulary, n = positions, K = entries, T = extra temperatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitstore.format.numpy_types import F32, F64, I64, Array
from logitstore.records import STD_FLOOR


@dataclass(frozen=True)
class Kept:
    """What to keep of a distribution.

    Attributes:
        top_k: Entries of a record at most.
        max_tail: Keep the fewest entries that leave no more than this; None: always `top_k`.
        temperatures: Extra temperatures to keep the log-normaliser for.
        logit_std: Whether to keep the standard deviation of the logits too.
    """

    top_k: int
    max_tail: float | None = None
    temperatures: Sequence[float] = ()
    logit_std: bool = False


def summarise(z_nV: F32, tokens_n: I64, kept: Kept) -> dict[str, Array]:
    """Summarise rows of logits.

    Args:
        z_nV: Finite, or -inf for what the teacher excludes; never a whole row of that.
        tokens_n: The tokens that they predict.
        kept: What to keep.

    Returns:
        The arrays of `RawRecords` but for the tokens' own and their places.
    """
    at, k = np.arange(len(z_nV))[:, None], min(kept.top_k, z_nV.shape[1])
    ids_nK, top_nK, rest_n1 = _largest(z_nV, k)
    first_n1 = top_nK[:, :1]
    y_nV = z_nV - rest_n1
    with np.errstate(over="ignore"):  # of entries, whose mass is taken from here
        mass_nV = np.exp(y_nV)
    mass_nV[at, ids_nK[:, :k]] = 0.0
    entries_nK = top_nK[:, :k].astype(np.float64) - first_n1
    with np.errstate(divide="ignore", invalid="ignore"):
        rest_mass_n1 = mass_nV.sum(1, dtype=np.float64, keepdims=True)
        gap_n1 = (rest_n1 - first_n1).astype(np.float64)
        total_n1 = np.exp(entries_nK).sum(1, keepdims=True) + rest_mass_n1 * np.exp(gap_n1)
        logz_n1 = np.log(total_n1) - gap_n1  # relative to the rest, as y is
        entries_nK -= np.log(total_n1)
        tail_n = (np.log(rest_mass_n1) - logz_n1)[:, 0]
    said: dict[str, Array] = {
        "entry_ids": ids_nK[:, :k],
        "entry_logprobs": entries_nK,
        "entry_count": np.full(len(z_nV), k),
        "tail_logmass": tail_n,
        "token_logprob": y_nV[at[:, 0], tokens_n] - logz_n1[:, 0],
        "entropy": _entropy(entries_nK, mass_nV, y_nV, logz_n1, tail_n),
    }
    if kept.max_tail is not None:
        said |= _fewest(entries_nK, tail_n, kept.max_tail)
    y_nV -= y_nV.max(1, keepdims=True)  # now relative to the largest
    logz_n1 += gap_n1
    if kept.temperatures:
        norms = [lognorm(y_nV, logz_n1, np.float64(t)) for t in kept.temperatures]
        said["lognorm"] = np.stack(norms, 1)
    if kept.logit_std:
        std_n = y_nV.std(1, ddof=1, dtype=np.float64)
        said |= {
            "logit_std": std_n,
            "lognorm_std": lognorm(y_nV, logz_n1, std_n[:, None] + STD_FLOOR),
        }
    return said


def lognorm(y_nV: F32, logz_n1: F64, temperature: Any) -> F64:
    """Return (n,) the log-normaliser at a temperature, or at one for each row, (n, 1).

    Args:
        y_nV: Logits less the largest of the row.
        logz_n1: Their log-normaliser at temperature 1.
        temperature: Above 0.
    """
    sum_n1 = np.exp(y_nV / np.float32(temperature)).sum(1, dtype=np.float64, keepdims=True)
    found: F64 = (np.log(sum_n1) - logz_n1 / temperature)[:, 0]
    return found


def _largest(z_nV: F32, k: int) -> tuple[I64, F32, F32]:
    """Find the k + 1 largest logits, equal ones by id, and the one that stands for the rest."""
    count = min(k + 1, z_nV.shape[1])
    ids = np.argpartition(z_nV, z_nV.shape[1] - count, axis=1)[:, -count:]
    top = np.take_along_axis(z_nV, ids, 1)
    order = np.lexsort((ids, -top), axis=1)
    ids, top = np.take_along_axis(ids, order, 1), np.take_along_axis(top, order, 1)
    rest = top[:, -1:]
    # With nothing outside, or only what the teacher excludes, any offset will do.
    has_rest = (rest > -np.inf) & (k < z_nV.shape[1])
    return ids.astype(np.int64), top, np.where(has_rest, rest, top[:, :1])


def _entropy(entries_nK: F64, mass_nV: F32, y_nV: F32, logz_n1: F64, tail_n: F64) -> F64:
    # What is excluded has y = -inf and no mass, which together are no number, and no entropy.
    finite = np.where(mass_nV > 0, y_nV, 0.0)
    rest_n = np.einsum("nv,nv->n", mass_nV, finite, dtype=np.float64)
    p_nK = np.exp(entries_nK)
    head_n = -(p_nK * np.where(p_nK > 0, entries_nK, 0.0)).sum(1)
    logz_n = logz_n1[:, 0]
    found: F64 = head_n + logz_n * np.exp(tail_n) - rest_n * np.exp(-logz_n)
    return np.maximum(found, 0.0)


def _fewest(entries_nK: F64, tail_n: F64, max_tail: float) -> dict[str, Array]:
    """Find the fewest entries that leave `max_tail` or less (else all), and the tail they leave."""
    parts = np.concatenate([entries_nK[:, 1:], tail_n[:, None]], 1)
    left = np.logaddexp.accumulate(parts[:, ::-1], axis=1)[:, ::-1]
    within = np.exp(left) <= max_tail
    within[:, -1] = True
    keep = within.argmax(1)
    return {
        "entry_count": keep + 1,
        "tail_logmass": np.take_along_axis(left, keep[:, None], 1)[:, 0],
    }
