"""Encode log-probabilities as small integers, decode them, and measure the error.

A log-probability x <= 0 is stored as the code q = round(-x / step), a 16-bit number; 65535 is -inf.
The entries of a record are stored most probable first, each as the difference from the one before
(a rank delta): sorted values differ by little, so the high bits are zeros and compress to nothing.

Rounding every entry moves their sum by up to half a step, 0.5 % at 1/96, which would bias every
loss. So a decoded record is made to sum to one again:

    tail mass < 1/2:   entries += log((1 - e^tail) / sum_i e^(-q_i step))
    tail mass >= 1/2:  tail = log(1 - sum_i e^(-q_i step))

The first line gives the entries what the stored tail leaves over. For a flat teacher (head 4e-6 of
the mass) the stored tail rounds to 1, which would leave nothing: hence the second line. The smaller
of head and tail has the smaller absolute error, so it is believed, and the other is one minus it.

The encoder may round more coarsely where it does not matter; readers only know the one step.
Multiples of 2 beyond 3 nats and of 4 beyond 5 cost little fidelity and save a sixth of the bytes.

Shape legend: n = records, K = entries asked for, m = entries kept, flat.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from logitstore.format.numpy_types import F32, F64, I32, I64, U16, U32, Array, Bools

ENTRY_STEP = 1 / 96
TOKEN_STEP = 1 / 512
TAIL_STEP = 1 / 256
ENTROPY_STEP = 1 / 256
NEG_INF_CODE = 0xFFFF
MAX_CODE = 0xFFFE
_BLOCK_ENTRIES = 65_536  # encoded at a time: half a megabyte, which stays in the processor's cache
_NARROW_ENTRIES = 2**31 // 0xFFFF  # this many of the largest deltas add up to less than 2^31
_COARSER = ((3.0, 2), (5.0, 4))  # (nats, steps): entries beyond nats are multiples of steps


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
    """Encode non-positive log-values; -inf has its own code, what is too small the last other."""
    with np.errstate(invalid="ignore"):
        codes = np.rint(-np.asarray(values, np.float64) / step)
    finite = np.clip(np.nan_to_num(codes, nan=0.0, posinf=NEG_INF_CODE), 0, MAX_CODE)
    return np.where(np.isposinf(codes), NEG_INF_CODE, finite).astype(np.uint16)


def dequantise(codes: U16, step: float) -> F32:
    """Decode log-values, exact up to half a step."""
    values = codes.astype(np.float64) * -step
    return np.where(codes == NEG_INF_CODE, -np.inf, values).astype(np.float32)


def quantise_entropy(entropy: npt.ArrayLike) -> U16:
    """Encode non-negative entropies, in nats."""
    return quantise(-np.maximum(np.asarray(entropy, np.float64), 0.0), ENTROPY_STEP)


def dequantise_entropy(codes: U16) -> F32:
    """Decode entropies, in nats."""
    return codes.astype(np.float32) * np.float32(ENTROPY_STEP)


def entry_codes(logprobs: npt.ArrayLike) -> I32:
    """Encode entries, more coarsely where they are small; sorted values stay sorted."""
    x = np.asarray(logprobs, np.float32) * np.float32(-1 / ENTRY_STEP)
    np.maximum(x, 0.0, out=x)
    multiple, before = np.ones(x.shape, np.float32), 1
    for nats, steps in _COARSER:  # powers of two: dividing by them is exact
        multiple += (x > nats / ENTRY_STEP) * np.float32(steps - before)
        before = steps
    x /= multiple
    np.rint(x, out=x)
    x *= multiple
    np.minimum(x, NEG_INF_CODE, out=x)
    codes: I32 = x.astype(np.int32)
    return codes


def encode_entries(
    logprobs_nK: F32, ids_nK: U32 | None, count_n: I64, tail_n: F32
) -> EncodedEntries:
    """Quantise the entries and tails of n records, and measure what that changed.

    Args:
        logprobs_nK: Most probable first; slots at and beyond a record's count are ignored.
        ids_nK: Their token ids, or None to keep values only.
        count_n: Entries of each record.
        tail_n: Log of the probability in the tail, beyond the entries.
    """
    rows = max(1, _BLOCK_ENTRIES // max(logprobs_nK.shape[1], 1))
    blocks = [
        _encode_block(
            logprobs_nK[i : i + rows],
            None if ids_nK is None else ids_nK[i : i + rows],
            count_n[i : i + rows],
            tail_n[i : i + rows].astype(np.float64),
        )
        for i in range(0, max(len(count_n), 1), rows)
    ]

    def join(name: str) -> Any:
        return np.concatenate([getattr(block, name) for block in blocks])

    ids = None if ids_nK is None else join("ids")
    deltas, count, tail_codes = join("deltas"), join("count"), join("tail_codes")
    return EncodedEntries(deltas, ids, count, tail_codes, join("kl"), join("l1"), join("dropped"))


def _encode_block(
    logprobs_nK: F32, ids_nK: U32 | None, count_n: I64, tail_n: F64
) -> EncodedEntries:
    codes = entry_codes(logprobs_nK)
    slots = np.arange(codes.shape[1])
    offered = slots < count_n[:, None]
    kept = offered & (codes < NEG_INF_CODE)
    count = kept.sum(1)
    # What the code cannot hold (below e^-682, less than any float32 sum can notice) is left out and
    # counted. A token that the teacher excludes, at -inf, has nothing to lose.
    dropped = (offered & ~kept & np.isfinite(logprobs_nK)).sum(1)
    tail_codes = quantise(tail_n, TAIL_STEP)
    kl, l1 = _distance(logprobs_nK, tail_n, codes, kept, tail_codes)
    first = slots < count[:, None]  # where the kept ones are once they are in order
    ids = None
    if ids_nK is None:
        first = kept
    else:
        # One key orders by (code, id): after rounding, ties are common and their order is fixed.
        key = codes.astype(np.int64) << 32
        key |= ids_nK
        key[~kept] = np.iinfo(np.int64).max
        key.sort(axis=1)
        codes = (key >> 32).astype(np.int32)
        ids = _where(first, key.astype(np.uint32))  # the lower half
    deltas = codes.copy()
    deltas[:, 1:] -= codes[:, :-1]
    deltas = _where(first, deltas)
    if deltas.min(initial=0) < 0:
        raise ValueError("entries are not sorted, most probable first")
    stored = deltas.astype(np.uint16)
    return EncodedEntries(stored, ids, count.astype(np.uint16), tail_codes, kl, l1, dropped)


def _where(mask_nK: Bools, values_nK: Array) -> Array:
    """Return `values[mask]`, flat; without a copy where all of the mask is set."""
    return values_nK.ravel() if mask_nK.all() else values_nK[mask_nK]


def _distance(
    logprobs_nK: F32, tail_n: F64, codes_nK: I32, kept_nK: Bools, tail_codes: U16
) -> tuple[F32, F32]:
    """Compute KL and L1 between what came in and what a reader will see, over entries and tail.

    With x what came in, d = x + q step the error of rounding in nats, m = e^(-q step) and Z the sum
    of e^x (the teacher's own float32 sum is one up to 1e-6), an entry was m e^d / Z and is seen as
    m e^shift. |d| is at most two steps, so e^d is a short series: no exponential is taken.
    """
    error_nats: F64 = codes_nK.astype(np.float64) * ENTRY_STEP
    error_nats += logprobs_nK
    mass = _MASS_OF_CODE.take(codes_nK.astype(np.intp))
    if not kept_nK.all():
        error_nats[~kept_nK] = mass[~kept_nK] = 0.0
    has_entries: Bools = np.any(kept_nK, axis=1)
    tail, shift = _tail_and_shift(mass.sum(1), has_entries, tail_codes)

    ratio = _exp_of_small(error_nats)  # of the true probability to the decoded one, before shift
    head, p_tail = np.einsum("nk,nk->n", mass, ratio), np.exp(tail_n)
    total = head + p_tail
    error_nats *= ratio
    with np.errstate(invalid="ignore"):
        in_tail = np.where(p_tail > 0, p_tail * (tail_n - tail), 0.0)
    kl = (np.einsum("nk,nk->n", mass, error_nats) - shift * head + in_tail) / total - np.log(total)

    ratio /= total[:, None]
    ratio -= np.exp(shift)[:, None]
    l1 = np.einsum("nk,nk->n", mass, np.abs(ratio, out=ratio))
    l1 += np.abs(p_tail / total - np.exp(tail))
    return kl.astype(np.float32), l1.astype(np.float32)


def _exp_of_small(d: F64) -> F64:
    """Compute e^d for |d| <= 2 ENTRY_STEP by four terms of its series, exact to 8e-9."""
    series = d / 6
    series += 0.5
    for _ in range(2):
        series *= d
        series += 1
    return series


def decode_entries(deltas: U16, count: I64, tail_codes: U16) -> tuple[F32, F32]:
    """Decode entries and tails as readers see them: each record sums to one.

    Args:
        deltas: (m,) rank deltas, flat.
        count: (n,) entries of each record, summing to m.
        tail_codes: (n,).

    Returns:
        (m,) log-probabilities and (n,) log tail masses, float32.

    Raises:
        ValueError: The codes of a record cannot be a distribution.
    """
    width = int(count[0]) if len(count) else 0
    if width and (count == width).all():  # rectangles are faster
        return _decode_rectangle(deltas, width, tail_codes)
    return _decode_ragged(deltas, count, tail_codes)


def _decode_rectangle(deltas: U16, width: int, tail_codes: U16) -> tuple[F32, F32]:
    """Decode records that all have `width` entries, at least one."""
    n = len(tail_codes)
    # Half the memory to pass over, where no record's sum of deltas can wrap around. That of all
    # records may: differences of what wrapped are right again.
    narrow = np.int32 if width < _NARROW_ENTRIES else np.int64
    codes_nK = deltas.cumsum(dtype=narrow).reshape(n, width)
    codes_nK[1:] -= codes_nK[:-1, -1].copy()[:, None]
    _check_codes(codes_nK[:, -1])
    head = np.einsum("nk->n", _MASS_OF_CODE.take(codes_nK, mode="clip"))  # in range: checked
    tail, shift = _tail_and_shift(head, np.ones(n, np.bool_), tail_codes)
    logprobs_nK = codes_nK.astype(np.float32)
    logprobs_nK *= np.float32(-ENTRY_STEP)
    logprobs_nK += shift.astype(np.float32)[:, None]
    return logprobs_nK.reshape(-1), tail.astype(np.float32)


def _decode_ragged(deltas: U16, count: I64, tail_codes: U16) -> tuple[F32, F32]:
    """Decode records with any number of entries each, also none."""
    has = count > 0
    stops = np.cumsum(count)[has]
    starts = stops - count[has]
    codes = running_sums(deltas.astype(np.int64), starts)
    _check_codes(codes[stops - 1])
    head = np.zeros(len(count))
    if codes.size:
        head[has] = np.add.reduceat(_MASS_OF_CODE.take(codes), starts)
    tail, shift = _tail_and_shift(head, has, tail_codes)
    logprobs = codes.astype(np.float32)
    logprobs *= np.float32(-ENTRY_STEP)
    logprobs += np.repeat(shift.astype(np.float32), count)
    return logprobs, tail.astype(np.float32)


def _check_codes(last: npt.NDArray[np.signedinteger[Any]]) -> None:
    """Check that the last code of each record, its largest, is in the format's range."""
    if last.max(initial=0) >= NEG_INF_CODE:
        raise ValueError("an entry's code is beyond the range of the format")


def running_sums(steps: I64, starts: I64) -> I64:
    """Compute running sums in place, anew from each start; `starts` ascend from 0."""
    if steps.size:
        sums = np.add.reduceat(steps, starts)
        steps[starts[1:]] -= sums[:-1]
    return np.cumsum(steps, out=steps)


_CODES = np.arange(NEG_INF_CODE + 1)
_MASS_OF_CODE = np.exp(_CODES * -ENTRY_STEP)
_TAIL_OF_CODE = np.where(_CODES == NEG_INF_CODE, -np.inf, _CODES * -TAIL_STEP)
with np.errstate(divide="ignore"):
    _LOG_HEAD_OF_CODE = np.log(-np.expm1(_TAIL_OF_CODE))  # what the tail leaves to the head
_LAST_TRUSTING_HEAD = int(_CODES[np.log(0.5) <= _TAIL_OF_CODE][-1])


def _tail_and_shift(head_n: F64, has_entries_n: Bools, tail_codes_n: U16) -> tuple[F64, F64]:
    """Return log tail masses, and what is added to the entries; the rule is in the module's essay.

    Raises:
        ValueError: A head of one or more, where the tail is one minus it.
    """
    tail = _TAIL_OF_CODE[tail_codes_n]
    trusts_head = (tail_codes_n <= _LAST_TRUSTING_HEAD) | ~has_entries_n
    at = np.flatnonzero(trusts_head)  # usually few
    head_of_those = head_n[at]
    if (head_of_those >= 1).any():
        raise ValueError("a record's entries and tail add up to more than one")
    shift = _LOG_HEAD_OF_CODE[tail_codes_n]
    shift -= np.log(np.where(trusts_head, 1.0, head_n))
    tail[at] = np.log1p(-head_of_those)
    shift[at] = 0.0
    return tail, shift
