"""ALM: against its definition, its limit, and where its minimum lies."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from distill.losses.alm import FLOOR_NATS, SUREST_NATS, alm

TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 100.0, math.inf])
#: A group's log-probability: from nearly sure to a long group of unlikely tokens.
logprobs = st.floats(-200, -1e-3)


def naive(b: float, a: float, temperature: float) -> tuple[float, float]:
    """Value and slope in b, in Python's float64, as LOSSES writes them."""
    if math.isinf(temperature):
        return (a - b) + a * math.log(b / a), -1 + a / b
    t = temperature
    rest = 1 - math.exp(a / t)
    value = -(math.exp(a / t) * b / t + rest * math.log(1 - math.exp(b / t)))
    return value, -(math.exp(a / t) - rest * math.exp(b / t) / (1 - math.exp(b / t))) / t


def value_and_slope(b: float, a: float, temperature: float, dtype: torch.dtype) -> list[float]:
    student = torch.tensor([b], dtype=dtype, requires_grad=True)
    loss = alm(student, torch.tensor([a], dtype=dtype), temperature)
    (slope,) = torch.autograd.grad(loss.sum(), student)
    return [loss.item(), slope.item()]


@TEMPERATURES
@given(logprobs, logprobs)
def test_matches_the_definition_in_value_and_slope(temperature: float, a: float, b: float) -> None:
    want = list(naive(b, a, temperature))
    assert value_and_slope(b, a, temperature, torch.float64) == pytest.approx(
        want, rel=1e-8, abs=1e-10
    )
    assert value_and_slope(b, a, temperature, torch.float32) == pytest.approx(
        want, rel=1e-4, abs=2e-4
    )


@TEMPERATURES
@given(logprobs, logprobs)
def test_least_for_a_student_as_sure_as_its_teacher(temperature: float, a: float, b: float) -> None:
    at_a, slope = value_and_slope(a, a, temperature, torch.float64)
    assert abs(slope) < 1e-9
    assert value_and_slope(b, a, temperature, torch.float64)[0] >= at_a - 1e-12
    if math.isinf(temperature):
        assert at_a == 0


@given(logprobs, logprobs)
def test_the_limit_is_the_divergence_times_the_temperature(a: float, b: float) -> None:
    """T times (loss - the teacher's own entropy), for a T far above all log-probabilities."""
    hot = 1e7
    student, teacher = (torch.tensor([x], dtype=torch.float64) for x in (b, a))
    divergence = hot * (alm(student, teacher, hot) - alm(teacher, teacher, hot))
    limit = alm(student, teacher, math.inf)
    torch.testing.assert_close(divergence, limit, rtol=1e-3, atol=1e-5)


@TEMPERATURES
def test_finite_at_certainty_and_at_impossibility(temperature: float) -> None:
    ends = torch.tensor([0.0, -1e-9, -1.0, -1e4, -torch.inf])
    student = ends[:4].repeat_interleave(5).requires_grad_()
    loss = alm(student, ends.repeat(4), temperature)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()
    for clamped, same in ((0.0, SUREST_NATS), (-torch.inf, FLOOR_NATS)):
        one = torch.tensor([-2.0])
        torch.testing.assert_close(
            alm(one, torch.tensor([clamped]), temperature),
            alm(one, torch.tensor([same]), temperature),
        )


@TEMPERATURES
def test_groups_do_not_feel_each_other_and_none_is_none(temperature: float) -> None:
    gen = torch.Generator().manual_seed(0)
    student, teacher = -10 * torch.rand(2, 6, generator=gen)
    together = alm(student, teacher, temperature)
    alone = [alm(student[i : i + 1], teacher[i : i + 1], temperature) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
    assert alm(student[:0], teacher[:0], temperature).shape == (0,)


@TEMPERATURES
def test_half_precision_is_summed_in_float32(temperature: float) -> None:
    student, teacher = (torch.tensor([x]).bfloat16() for x in (-3.0, -2.0))
    got: Tensor = alm(student, teacher, temperature)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(naive(-3.0, -2.0, temperature)[0], rel=1e-4)
