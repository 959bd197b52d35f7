"""Log-probabilities as small integers, and back, with the error measured.

A log-probability x <= 0 is stored as the code q = round(-x / step), a 16-bit number; 65535 is -inf.
The entries of a record are stored most probable first, each as the difference from the one before
(a rank delta): sorted values differ by little, so the high bits are zeros and compress to nothing.

Rounding every entry moves their sum by up to half a step, 0.5 % at 1/96, which would bias every
loss. So a decoded record is made to sum to one again:

    tail mass < 1/2:   entries += log((1 - e^tail) / sum_i e^(-q_i step))
    tail mass >= 1/2:  tail = log(1 - sum_i e^(-q_i step))

The second line is there because the first divides by what the tail leaves over: for a flat teacher
(head 4e-6 of the mass) the tail rounds to 1 and nothing would be left. Whichever of head and tail
is the smaller knows itself best, and the other follows.

The encoder may round coarser than the step where it does not matter; readers know one step only.
Multiples of 2 beyond 3 nats and of 4 beyond 5 cost little fidelity and save a sixth of the bytes.

Shape legend: n = records, K = entries asked for, m = entries kept, flat.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

ENTRY_STEP = 1 / 96
TOKEN_STEP = 1 / 512
TAIL_STEP = 1 / 256
ENTROPY_STEP = 1 / 256
NEG_INF_CODE = 0xFFFF
MAX_CODE = 0xFFFE
_COARSER = ((3.0, 2), (5.0, 4))  # beyond so many nats, round entries to multiples of so many steps


@dataclass(frozen=True)
class EncodedEntries:
    """Entries as they are stored, and what storing them changed.

    Attributes:
        deltas: (m,) codes as rank deltas, flat.
        ids: (m,) flat, ordered by (code, id) within a record; None where not kept.
        count: (n,) entries kept of each record.
        tail_codes: (n,).
        kl: (n,) KL(true || decoded) over the entries and the tail, nats.
        l1: (n,) L1 distance over the same buckets.
        dropped: (n,) entries below the code's range, left out.
    """

    deltas: U16
    ids: U32 | None
    count: U16
    tail_codes: U16
    kl: F32
    l1: F32
    dropped: I64


def quantise(values: npt.ArrayLike, step: float) -> U16:
    """Codes of non-positive log-values; -inf has its own code, what is too small the largest."""
    with np.errstate(invalid="ignore"):
        codes = np.rint(-np.asarray(values, np.float64) / step)
    finite = np.clip(np.nan_to_num(codes, nan=0.0, posinf=NEG_INF_CODE), 0, MAX_CODE)
    return np.where(np.isposinf(codes), NEG_INF_CODE, finite).astype(np.uint16)


def dequantise(codes: U16, step: float) -> F32:
    """Log-values of codes; the reverse of `quantise` up to half a step."""
    values = codes.astype(np.float64) * -step
    return np.where(codes == NEG_INF_CODE, -np.inf, values).astype(np.float32)


def quantise_entropy(entropy: npt.ArrayLike) -> U16:
    """Codes of non-negative entropies, in nats."""
    return quantise(-np.maximum(np.asarray(entropy, np.float64), 0.0), ENTROPY_STEP)


def dequantise_entropy(codes: U16) -> F32:
    """Entropies in nats."""
    return codes.astype(np.float32) * np.float32(ENTROPY_STEP)


def entry_codes(logprobs: npt.ArrayLike) -> I64:
    """Codes of entries, coarser where they are small; monotone, so sorted values stay sorted."""
    x = np.maximum(-np.asarray(logprobs, np.float64), 0.0) / ENTRY_STEP
    codes = np.rint(x)
    for nats, multiple in _COARSER:
        codes = np.where(x > nats / ENTRY_STEP, multiple * np.rint(x / multiple), codes)
    return np.minimum(codes, NEG_INF_CODE).astype(np.int64)


def encode_entries(
    logprobs_nK: F32, ids_nK: U32 | None, count_n: I64, tail_n: F32
) -> EncodedEntries:
    """Quantise the heads of n records.

    Args:
        logprobs_nK: Most probable first; slots at and beyond a record's count are ignored.
        ids_nK: Their token ids, or None to keep values only.
        count_n: Entries of each record.
        tail_n: Log of the probability outside them.
    """
    width = logprobs_nK.shape[1]
    codes = entry_codes(logprobs_nK)
    offered = np.arange(width) < count_n[:, None]
    kept = offered & (codes < NEG_INF_CODE)
    count = kept.sum(1)
    # What the code cannot hold (below e^-682, less than any float32 sum can notice) is left out and
    # counted. A token that the teacher excludes, at -inf, has nothing to lose.
    dropped = (offered & ~kept & np.isfinite(logprobs_nK)).sum(1)
    tail = tail_n.astype(np.float64)
    tail_codes = quantise(tail, TAIL_STEP)

    kl, l1 = _distance(logprobs_nK, tail, codes, kept, tail_codes)
    ids = None
    if ids_nK is not None:
        # One key orders by (code, id): after rounding, ties are common and their order is fixed.
        key = np.where(kept, (codes << 32) | ids_nK.astype(np.int64), np.iinfo(np.int64).max)
        key.sort(axis=1)
        first = np.arange(width) < count[:, None]
        codes, kept = key >> 32, first
        ids = (key[first] & 0xFFFF_FFFF).astype(np.uint32)
    deltas = np.diff(codes, axis=1, prepend=0)[kept]
    if (deltas < 0).any():
        raise ValueError("entries are not sorted, most probable first")
    deltas = deltas.astype(np.uint16)
    return EncodedEntries(deltas, ids, count.astype(np.uint16), tail_codes, kl, l1, dropped)


def _distance(
    logprobs_nK: F32, tail_n: F64, codes_nK: I64, kept_nK: npt.NDArray[np.bool_], tail_codes: U16
) -> tuple[F32, F32]:
    """KL and L1 between what came in and what a reader will see, over entries and tail."""
    true = np.where(kept_nK, logprobs_nK.astype(np.float64), -np.inf)
    flat, tail = _normalise(codes_nK[kept_nK], kept_nK.sum(1), tail_codes)
    seen = np.full(true.shape, -np.inf)
    seen[kept_nK] = flat
    p = np.exp(np.concatenate([true, tail_n[:, None]], axis=1))
    q = np.exp(np.concatenate([seen, tail[:, None]], axis=1))
    p = p / p.sum(1, keepdims=True)  # the teacher's own float32 sum is one up to 1e-6
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(np.maximum(q, 1e-300))), 0.0)
    return terms.sum(1).astype(np.float32), np.abs(p - q).sum(1).astype(np.float32)


def decode_entries(deltas: U16, count: I64, tail_codes: U16) -> tuple[F32, F32]:
    """Entries and tails as a reader sees them: each record sums to one.

    Args:
        deltas: (m,) rank deltas, flat.
        count: (n,) entries of each record, summing to m.
        tail_codes: (n,).

    Returns:
        (m,) log-probabilities and (n,) log tail masses, float32.

    Raises:
        ValueError: The codes of a record cannot be a distribution.
    """
    running = np.cumsum(deltas, dtype=np.int64)
    starts = np.cumsum(count) - count
    has = count > 0
    before = np.zeros(len(count), np.int64)
    before[has] = running[starts[has]] - deltas[starts[has]]
    codes = running - np.repeat(before, count)
    if codes.size and int(codes.max()) >= NEG_INF_CODE:
        raise ValueError("an entry's code is beyond the range of the format")
    logprobs, tail = _normalise(codes, count, tail_codes)
    return logprobs.astype(np.float32), tail.astype(np.float32)


_MASS_OF_CODE = np.exp(-np.arange(NEG_INF_CODE + 1) * ENTRY_STEP)


def _normalise(codes_m: I64, count_n: I64, tail_codes_n: U16) -> tuple[F64, F64]:
    """The rule of the module docstring, in float64."""
    head = np.zeros(len(count_n))
    has = count_n > 0
    if has.any():
        starts = (np.cumsum(count_n) - count_n)[has]
        head[has] = np.add.reduceat(_MASS_OF_CODE[codes_m], starts)
    tail = np.where(tail_codes_n == NEG_INF_CODE, -np.inf, tail_codes_n * -TAIL_STEP)
    trusts_head = (tail >= np.log(0.5)) | ~has
    if (trusts_head & (head >= 1)).any():
        raise ValueError("a record's entries and tail add up to more than one")
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = np.where(trusts_head, np.log1p(-head), tail)
        shift = np.where(trusts_head, 0.0, np.log(-np.expm1(tail)) - np.log(head))
    return codes_m * -ENTRY_STEP + np.repeat(shift, count_n), tail
