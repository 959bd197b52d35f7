"""Log-probabilities survive storage: they sum to one, stay sorted, and the error is measured."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from logitstore.format.logprob_codec import (
    ENTRY_STEP,
    NEG_INF_CODE,
    TAIL_STEP,
    decode_entries,
    dequantise,
    encode_entries,
    entry_codes,
    quantise,
)


@st.composite
def heads(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(logprobs (n, K), ids, count, tail) of random distributions, from flat to one-hot."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, v = draw(st.integers(1, 5)), draw(st.integers(2, 4000))
    k = draw(st.integers(1, min(v, 40)))
    logits = rng.normal(size=(n, v)) * draw(st.sampled_from([0.0, 0.1, 2.0, 30.0, 300.0]))
    logits = logits - logits.max(1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    order = np.argsort(-logp, axis=1, kind="stable")
    top = np.take_along_axis(logp, order, 1)
    count = rng.integers(0, k + 1, n)
    outside = np.arange(v) >= count[:, None]
    with np.errstate(divide="ignore"):
        tail = np.log((np.exp(top) * outside).sum(1))
    return top[:, :k].astype(np.float32), order[:, :k].astype(np.uint32), count, tail


def roundtrip(case: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logprobs, ids, count, tail = case
    stored = encode_entries(logprobs, ids, count, tail.astype(np.float32))
    kept = stored.count.astype(np.int64)
    entries, tails = decode_entries(stored.deltas, kept, stored.tail_codes)
    return entries, tails, kept


@given(heads())
def test_head_and_tail_are_one(case: tuple[np.ndarray, ...]) -> None:
    entries, tails, count = roundtrip(case)
    owner = np.repeat(np.arange(len(count)), count)
    head = np.bincount(owner, np.exp(entries.astype(np.float64)), minlength=len(count))
    assert np.abs(head + np.exp(tails.astype(np.float64)) - 1).max() < 1e-5


@given(heads())
def test_entries_stay_sorted_by_probability_then_id(case: tuple[np.ndarray, ...]) -> None:
    logprobs, ids, count, tail = case
    stored = encode_entries(logprobs, ids, count, tail.astype(np.float32))
    kept = stored.count.astype(np.int64)
    entries, _ = decode_entries(stored.deltas, kept, stored.tail_codes)
    assert stored.ids is not None
    stops = np.cumsum(kept)
    for start, stop in zip(stops - kept, stops, strict=True):
        pairs = list(zip(-entries[start:stop], stored.ids[start:stop], strict=True))
        assert pairs == sorted(pairs)
    for row, (start, stop) in enumerate(zip(stops - kept, stops, strict=True)):
        assert set(stored.ids[start:stop]) <= set(ids[row, : count[row]])


@given(heads())
def test_the_measured_distance_is_the_true_one(case: tuple[np.ndarray, ...]) -> None:
    logprobs, ids, count, tail = case
    stored = encode_entries(logprobs, ids, count, tail.astype(np.float32))
    kept = stored.count.astype(np.int64)
    entries, tails = decode_entries(stored.deltas, kept, stored.tail_codes)
    stops = np.cumsum(kept)
    for row, (start, stop) in enumerate(zip(stops - kept, stops, strict=True)):
        true = np.exp(np.sort(logprobs[row, : count[row]].astype(np.float64))[::-1])
        seen = np.exp(entries[start:stop].astype(np.float64))
        lost = true[len(seen) :].sum()
        true_tail = np.exp(tail[row]) + lost
        l1 = np.abs(true[: len(seen)] - seen).sum() + abs(true_tail - np.exp(float(tails[row])))
        assert abs(stored.l1[row] - l1) < 1e-5


def test_a_flat_teacher_keeps_its_head() -> None:
    """Head 4e-6 of the mass: dividing by what the rounded tail leaves over would multiply it by
    a thousand, or lose it."""
    v = 262_144
    head = np.full((1, 1), -np.log(v), np.float32)
    tail = np.log1p(np.array([-1 / v]))
    stored = encode_entries(head, None, np.array([1]), tail.astype(np.float32))
    entries, tails = decode_entries(stored.deltas, np.array([1]), stored.tail_codes)
    assert abs(float(entries[0]) + np.log(v)) <= 4 * ENTRY_STEP / 2 + 1e-6
    assert np.exp(float(tails[0])) < 1


def test_rounding_without_the_shift_would_bias_every_loss() -> None:
    """The claim behind the shift: sums of rounded entries are off by far more than what is left."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 64)) * 4
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    logp = -np.sort(-logp, axis=1).astype(np.float32)
    rounded = np.exp(entry_codes(logp) * -ENTRY_STEP).sum(1)
    assert np.abs(rounded - 1).max() > 3e-3
    stored = encode_entries(logp, None, np.full(500, 64), np.full(500, -np.inf, np.float32))
    entries, _ = decode_entries(stored.deltas, stored.count.astype(np.int64), stored.tail_codes)
    total = np.exp(entries.astype(np.float64)).reshape(500, -1).sum(1)
    assert np.abs(total - 1).max() < 1e-6


def test_what_the_code_cannot_hold_is_counted() -> None:
    logprobs = np.array([[-0.1, -700.0, -np.inf]], np.float32)
    stored = encode_entries(logprobs, None, np.array([3]), np.log1p(-np.exp([-0.1])).astype("f4"))
    assert (stored.count[0], stored.dropped[0]) == (1, 1)  # the excluded token loses nothing


def test_minus_infinity_has_its_own_code() -> None:
    values = np.array([0.0, -1.0, -1e9, -np.inf])
    codes = quantise(values, TAIL_STEP)
    assert codes[-1] == NEG_INF_CODE > codes[-2]
    assert np.isneginf(dequantise(codes, TAIL_STEP)[-1])
    assert np.isfinite(dequantise(codes, TAIL_STEP)[:-1]).all()


@given(st.lists(st.floats(-120, 0), min_size=2, max_size=50))
def test_codes_are_monotone(values: list[float]) -> None:
    codes = entry_codes(np.sort(np.array(values))[::-1])
    assert (np.diff(codes) >= 0).all()


def test_unsorted_values_are_refused() -> None:
    with pytest.raises(ValueError, match="not sorted"):
        encode_entries(
            np.array([[-2.0, -1.0]], np.float32), None, np.array([2]), np.array([-1.0], np.float32)
        )


def test_codes_that_are_no_distribution_are_refused() -> None:
    with pytest.raises(ValueError, match="more than one"):
        decode_entries(np.array([0, 0], np.uint16), np.array([2]), np.array([0], np.uint16))


@pytest.mark.parametrize("width", [40_000, 32_000, 3])
def test_sums_of_deltas_that_would_wrap_around_are_refused(width: int) -> None:
    """40,000 of the largest deltas are more than 31 bits hold: as a sum of those, below zero."""
    deltas = np.full(2 * width, 65535, np.uint16)
    with pytest.raises(ValueError, match="beyond the range"):
        decode_entries(deltas, np.full(2, width), np.full(2, 1000, np.uint16))
    with pytest.raises(ValueError, match="beyond the range"):
        decode_entries(deltas[:-1], np.array([width, width - 1]), np.full(2, 1000, np.uint16))


def test_records_of_one_width_are_decoded_as_among_others() -> None:
    rng = np.random.default_rng(0)
    deltas = rng.integers(0, 30, 7 * 5).astype(np.uint16)
    tails = rng.integers(178, 400, 8).astype(np.uint16)
    together, _ = decode_entries(
        np.append(deltas, 1).astype(np.uint16), np.array([5] * 7 + [1]), tails
    )
    alone, _ = decode_entries(deltas, np.full(7, 5), tails[:7])
    np.testing.assert_allclose(alone, together[:-1], rtol=1e-6)


def test_more_records_than_a_running_sum_can_hold_are_decoded_as_one() -> None:
    """70,000 records of a probability near zero: all codes together wrap around, twice."""
    deltas, tail = np.array([60_000, 5_000], np.uint16), np.array([300], np.uint16)
    one, _ = decode_entries(deltas, np.array([2]), tail)
    n = 70_000
    found, _ = decode_entries(np.tile(deltas, n), np.full(n, 2), np.tile(tail, n))
    np.testing.assert_array_equal(found.reshape(n, 2), np.tile(one, (n, 1)))
