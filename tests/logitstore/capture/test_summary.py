"""What is kept of a distribution, against its definition in float64, one position at a time."""

import math

import pytest
import torch

from logitstore.capture.teacher.summary import (
    HeadResult,
    HeadSettings,
    summarise,
    summarise_,
)
from logitstore.records import STD_FLOOR

V = 60


def logits(n: int = 40) -> torch.Tensor:
    """From flat to so sure that the rest is below e^-300, somewhere far from zero."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 4.0, 30.0, 200.0])[torch.arange(n) % 5]
    offset = torch.linspace(-50, 50, n)[:, None]
    return torch.randn(n, V, generator=generator) * scale[:, None] + offset


def by_definition(z: torch.Tensor, target: int, settings: HeadSettings) -> dict[str, torch.Tensor]:
    z = z.double()
    logp = z.log_softmax(0)
    order = logp.argsort(descending=True, stable=True)
    count = settings.top_k
    if settings.max_tail is not None:
        lefts = [logp[order[k:]].logsumexp(0).exp() for k in range(1, settings.top_k + 1)]
        within = [k for k, left in enumerate(lefts, 1) if left <= settings.max_tail]
        count = min([*within, settings.top_k])
    p = logp.exp()
    std = z.std()
    tempers = [*settings.temperatures, float(std) + STD_FLOOR]
    return {
        "token_logprob": logp[target],
        "entry_logprobs": logp[order[: settings.top_k]],
        "entry_count": torch.tensor(count),
        "tail_logmass": logp[order[count:]].logsumexp(0),
        "entropy": -(p * logp.where(p > 0, 0)).sum(),
        "lognorm": torch.stack([(logp / t).logsumexp(0) for t in tempers[:-1]]),
        "logit_std": std,
        "lognorm_std": (logp / tempers[-1]).logsumexp(0),
    }


def assert_as_defined(found: HeadResult, z: torch.Tensor, settings: HeadSettings) -> None:
    for n in range(len(z)):
        for name, wanted in by_definition(z[n], n % V, settings).items():
            ours = getattr(found, name)[n].double()
            torch.testing.assert_close(
                ours, wanted.double(), rtol=2e-6, atol=2e-5, equal_nan=True, msg=f"{name} of {n}"
            )


@pytest.mark.parametrize("max_tail", [None, 0.2, 1e-6])
@pytest.mark.parametrize("top_k", [1, 7, V - 1, V])
def test_everything_kept_is_as_defined(top_k: int, max_tail: float | None) -> None:
    settings = HeadSettings(top_k, max_tail, (0.5, 2.0, 20.0), logit_std=True)
    z = logits()
    assert_as_defined(summarise(z, torch.arange(len(z)) % V, settings), z, settings)


def test_without_entries_everything_is_the_tail() -> None:
    found = summarise(logits(), torch.zeros(40).long(), HeadSettings(0))
    assert found.entry_logprobs.shape == (40, 0)
    torch.testing.assert_close(found.tail_logmass, torch.zeros(40), atol=1e-6, rtol=0)


def test_a_tail_keeps_its_digits_however_small_it_is() -> None:
    """1 - sum is nothing below 6e-8 here, and e^y at the largest logit nothing below e^-103."""
    z = torch.zeros(3, V)
    z[:, :2] = torch.tensor([[20.0], [90.0], [2000.0]])
    found = summarise(z, torch.zeros(3).long(), HeadSettings(2)).tail_logmass
    wanted = torch.tensor([-20.0, -90.0, -2000.0]) + math.log((V - 2) / 2)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_what_the_teacher_excludes_has_no_mass_and_costs_no_digit() -> None:
    settings = HeadSettings(5, temperatures=(2.0,))
    z = logits()
    z[:, ::3] = -torch.inf
    z[0, 3:] = -torch.inf  # fewer left than entries asked for
    z[1] = torch.where(torch.arange(V) < 10, z[1], -torch.inf)
    found = summarise(z, torch.arange(40) % V, settings)
    for n in range(40):
        for name, wanted in by_definition(z[n], n % V, settings).items():
            if "std" not in name:
                ours = getattr(found, name)[n].double()
                torch.testing.assert_close(ours, wanted.double(), rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_says_so_and_others_are_not_touched(bad: float) -> None:
    z = logits(10)
    z[4, 11] = bad
    found = summarise(z, torch.zeros(10).long(), HeadSettings(3))
    assert found.tail_logmass.isnan().tolist() == [n == 4 for n in range(10)]
    assert found.entry_logprobs.isnan().any(1).tolist() == [n == 4 for n in range(10)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    settings = HeadSettings(7, 0.1, (2.0,))
    z = logits().clamp(-1e4, 1e4).to(dtype)
    found, wanted = (summarise(x, torch.zeros(40).long(), settings) for x in (z, z.float()))
    for ours, theirs in zip(vars(found).values(), vars(wanted).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_memory_to_work_in_changes_nothing_and_only_one_of_the_two_uses_logits_up() -> None:
    settings = HeadSettings(7, 0.1, (2.0,), logit_std=True)
    z, targets = logits(), torch.arange(40)
    kept = z.clone()
    wanted = summarise(z, targets, settings)
    assert torch.equal(z, kept)
    found = summarise_(z, targets, settings, work_nV=torch.full((40, V), torch.nan))
    for ours, theirs in zip(vars(found).values(), vars(wanted).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
