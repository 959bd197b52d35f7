"""Draws from the tail: numbers of a place, exact on every device, unbiased over 128,000 columns."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from logitstore.capture.teacher import draws as draws_module
from logitstore.capture.teacher.draws import (
    GENERATION,
    TAIL_DRAWS,
    draw,
    gumbel,
    philox,
    random_words,
    running_sum,
)
from logitstore.capture.teacher.summary import HeadResult, HeadSettings, summarise
from logitstore.records import STD_FLOOR

V = 40


def places(n: int, row: int = 0) -> torch.Tensor:
    """Of n consecutive tokens of a row."""
    return torch.stack([torch.full((n,), row), torch.zeros(n).long(), torch.arange(n)], 1)


def logits(n: int, vocab_size: int = V, seed: int = 0) -> torch.Tensor:
    """From flat to peaked."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.5, 2.0, 8.0])[torch.arange(n) % 3]
    return torch.randn(n, vocab_size, generator=generator) * scale[:, None]


def kept(rows: torch.Tensor, settings: HeadSettings, at: torch.Tensor | None = None) -> HeadResult:
    at = places(len(rows)) if at is None else at
    words = random_words(at, 2 * settings.draws, settings.seed, TAIL_DRAWS)
    return summarise(rows, torch.zeros(len(rows)).long(), settings, words)


def times(found: HeadResult, vocab_size: int) -> torch.Tensor:
    """(n, V) how often each token was drawn."""
    assert found.sample_ids is not None
    assert found.sample_counts is not None
    assert found.draw_count is not None
    is_draw = torch.arange(found.sample_ids.shape[1]) < found.draw_count[:, None]
    counts = torch.zeros(len(found.sample_ids), vocab_size)
    return counts.scatter_add_(1, found.sample_ids.long(), found.sample_counts * is_draw.float())


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_generator_is_philox_as_its_authors_publish_it(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    """The known answers of Random123, for philox4x32 with ten rounds."""
    of = [torch.tensor([[w]]) for w in counter]
    found = philox(tuple(of), (torch.tensor([[key[0]]]), torch.tensor([[key[1]]])))
    assert [int(w) for w in found] == words


def test_every_place_seed_and_purpose_has_numbers_of_its_own() -> None:
    at = torch.tensor(
        [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [2**32, 0, 0], [2**48 - 1, 3, 7]]
    )
    words = [
        random_words(at, 6, seed, purpose)
        for seed in (0, 1, 2**32 - 1)
        for purpose in (TAIL_DRAWS, GENERATION)
    ]
    everything = torch.cat(words).flatten()
    assert len(everything.unique()) == len(everything) == 6 * 6 * 6
    assert everything.min() >= 0
    assert everything.max() < 2**32
    # and those of a place do not depend on which others, or how many, are asked for with it
    assert torch.equal(random_words(at[3:4], 5, 0, TAIL_DRAWS), words[0][3:4, :5])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**46 + 2**40))
def test_a_number_is_scaled_as_integers_of_any_size_would_be(x: int, total: int) -> None:
    parts = (torch.tensor([x >> 32]), torch.tensor([x & 0xFFFF_FFFF]), torch.tensor([total]))
    assert int(draws_module._scaled(*parts)) == x * total >> 64


@pytest.mark.parametrize("top_k", [0, 5, V - 1, V])
@pytest.mark.parametrize("max_tail", [None, 0.3, 0.02])
def test_draws_are_s_tokens_from_beyond_the_entries_that_were_kept(
    top_k: int, max_tail: float | None
) -> None:
    found = kept(logits(60), HeadSettings(top_k, max_tail, draws=30))
    counts, slots = times(found, V), torch.arange(top_k)
    has_tail = found.tail_logmass > -torch.inf
    assert (counts.sum(1) == 30 * has_tail).all()
    is_entry = torch.zeros(60, V, dtype=torch.bool)
    is_entry.scatter_(1, found.entry_ids.long(), slots < found.entry_count[:, None])
    assert (counts[is_entry] == 0).all()
    if max_tail is not None and top_k == V - 1:  # what the bound left out may be drawn again
        listed = torch.zeros(60, V, dtype=torch.bool).scatter_(1, found.entry_ids.long(), True)
        assert (counts[listed] > 0).any()
    assert found.sample_ids is not None
    assert found.draw_count is not None
    for ids, n in zip(found.sample_ids.tolist(), found.draw_count.tolist(), strict=True):
        assert ids[:n] == sorted(set(ids[:n]))
    assert bool(has_tail.all()) == (top_k < V or max_tail is not None)


def test_the_tail_is_drawn_in_its_own_proportions() -> None:
    """Chi-square over many seeds, against the teacher's full tail in float64."""
    rows, settings, seeds = logits(6), HeadSettings(4, draws=255), 60
    total = torch.zeros(6, V)
    for seed in range(seeds):
        total += times(kept(rows, HeadSettings(4, draws=255, seed=seed)), V)
    p = rows.double().softmax(-1)
    p = p.scatter(1, kept(rows, settings).entry_ids.long(), 0)
    expected = seeds * 255 * p / p.sum(-1, keepdim=True)
    for n in range(6):
        # Columns that are hardly expected count as one.
        often = expected[n] >= 5
        seen = torch.cat([total[n][often], total[n][~often].sum()[None]]).double()
        wanted = torch.cat([expected[n][often], expected[n][~often].sum()[None]])
        chi2 = float(((seen - wanted) ** 2 / wanted.clamp(min=1e-9)).sum())
        freedom = len(seen) - 1
        assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_small_probabilities_of_a_wide_vocabulary_are_not_lost() -> None:
    """Half of the mass in 64 columns, then 131,008 of 4e-6: each is as likely as it should be.

    The distribution that a running sum draws from is its differences. In float32 those of small
    columns are multiples of 6e-8, for some 3 % off; in integers of 2^-46 they are the columns'.
    """
    width, many = 131_072, 131_008
    logprobs = torch.randn(width, generator=torch.Generator().manual_seed(0)) * 0.3
    logprobs[:64] += math.log(many / 64)
    logprobs = logprobs.log_softmax(-1)
    p = logprobs.double().exp()
    floats = logprobs.exp().cumsum(0).double().diff(prepend=torch.zeros(1).double())
    words = random_words(torch.tensor([[r, 0, 0] for r in range(20)]), 4000, 0, TAIL_DRAWS)
    found = draw(logprobs.expand(20, -1), torch.zeros(20), words)
    integers = running_sum(logprobs[None], torch.zeros(1))[0].diff(prepend=torch.zeros(1).long())
    assert total_variation(integers, p) < 1e-6 < 1e-3 < total_variation(floats, p)
    seen = torch.zeros(width).double()
    for ids, counts, n in zip(*found, strict=True):
        seen.index_add_(0, ids[:n].long(), counts[:n].double())
    assert seen.sum() == 20 * 2000
    share, in_runs = p.reshape(64, -1).sum(1), seen.reshape(64, -1).sum(1)
    chi2 = float(((in_runs - 40_000 * share) ** 2 / (40_000 * share)).sum())
    assert chi2 < 63 + 4 * math.sqrt(2 * 63)


def total_variation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a / a.sum() - b / b.sum()).abs().sum() / 2)


def test_a_record_without_a_tail_has_no_draws_and_one_with_a_sliver_has_all() -> None:
    rows = torch.full((3, V), -torch.inf)
    rows[0, :3] = 0.0  # nothing outside three entries
    rows[1] = -80.0
    rows[1, :3] = 0.0  # e^-80 outside, in all other tokens alike
    rows[2, :4] = 0.0  # one token outside
    found = kept(rows, HeadSettings(3, draws=50))
    assert found.draw_count is not None
    counts = times(found, V)
    assert counts.sum(1).tolist() == [0, 50, 50]
    assert found.draw_count.tolist()[0::2] == [0, 1]
    assert (counts[1, :3] == 0).all()
    assert found.draw_count[1] > 20


def test_the_smallest_and_the_largest_number_draw_tokens_that_are_there() -> None:
    """A running sum stands still over tokens without mass: none of them is drawn at its edges."""
    row = torch.tensor([[-torch.inf, -torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).log_softmax(-1)
    middle = 2**31  # exactly where the first token's half ends
    words = torch.tensor([[0, 0, middle, 0, 2**32 - 1, 2**32 - 1]])
    found = draw(row, torch.zeros(1), words)
    assert found.ids[0, :2].tolist() == [2, 4]
    assert found.counts[0, :2].tolist() == [1, 2]


def test_draws_do_not_depend_on_chunk_batch_or_neighbours() -> None:
    rows, settings = logits(30), HeadSettings(5, draws=20)
    whole = times(kept(rows, settings), V)
    parts = [
        times(kept(rows[i : i + 1], settings, places(30)[i : i + 1]), V)
        for i in reversed(range(30))
    ]
    assert torch.equal(torch.cat(parts[::-1]), whole)
    assert not torch.equal(times(kept(rows, settings, places(30, row=1)), V), whole)


def test_a_change_in_the_last_bits_moves_few_draws() -> None:
    """What the tolerance is: a draw at the edge of a column, and no other."""
    rows, settings = logits(200, 2000), HeadSettings(8, draws=50)
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)) * 1e-6
    before, after = (times(kept(r, settings), 2000) for r in (rows, rows + noise))
    moved = (before - after).abs().sum() / 2
    assert moved <= 0.002 * 200 * 50


def test_gumbel_noise_makes_the_largest_a_draw() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    noise = gumbel(random_words(places(20_000), 4, 3, GENERATION))
    assert noise.isfinite().all()
    chosen = (probs.log() + noise).argmax(-1).bincount(minlength=4) / 20_000
    torch.testing.assert_close(chosen, probs, atol=0.012, rtol=0)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    extremes = gumbel(torch.tensor([0, 2**32 - 1]))
    assert extremes[0] > 22
    assert not extremes.isnan().any()


def test_the_standard_deviation_is_that_of_the_full_logits() -> None:
    """Against float64, with the unbiased estimate; the normaliser at sigma + 1e-4."""
    rows = logits(30, 500) + 40
    found = kept(rows, HeadSettings(3, max_tail=0.1, logit_std=True, draws=2))
    exact = rows.double()
    std = exact.std(-1, unbiased=True)
    lognorm = (exact.log_softmax(-1) / (std + STD_FLOOR)[:, None]).logsumexp(-1)
    assert found.logit_std is not None
    assert found.lognorm_std is not None
    torch.testing.assert_close(found.logit_std.double(), std, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.lognorm_std.double(), lognorm, rtol=1e-5, atol=1e-5)
