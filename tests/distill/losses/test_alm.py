"""ALM: against its definition, its limit, and where its minimum lies."""

import math
from functools import partial
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from distill.losses.alm import FLOOR_NATS, SUREST_NATS, alm
from tests.kit.loss_laws import Law

TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 100.0, math.inf])
#: A group's log-probability: from nearly sure to a long group of unlikely tokens.
logprobs = st.floats(-200, -1e-3)


class Case(NamedTuple):
    """A number a group on both sides: what the student says of it is all that it is asked."""

    student_NV: Tensor
    teacher_N: Tensor


def naive(case: Case, student_NV: Tensor, temperature: float) -> Tensor:
    """The definition in float64, as LOSSES writes it."""
    a, b = case.teacher_N.double(), student_NV[:, 0]
    if math.isinf(temperature):
        return (a - b) + a * (b / a).log()
    a, b = a / temperature, b / temperature
    return -(a.exp() * b + (1 - a.exp()) * (1 - b.exp()).log())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pairs = draw(st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=6))
    student, teacher = torch.tensor(pairs).T
    return Case(student[:, None], teacher)


def law(temperature: float) -> Law:
    sides = -10 * torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    return Law(
        f"alm {temperature:g}",
        partial(alm, temperature=temperature),
        tuple(sides),
        cases(),
        lambda case, student_NV: alm(
            student_NV[:, 0], case.teacher_N.to(student_NV.dtype), temperature
        ),
        lambda case, student_NV: naive(case, student_NV, temperature),
        float32=(1e-4, 2e-4),
        float64=(1e-8, 1e-10),
        mates=(0.0, 0.0),
    )


LAWS = [law(temperature) for temperature in (1.0, 100.0, math.inf)]


def value_and_slope(b: float, a: float, temperature: float, dtype: torch.dtype) -> list[float]:
    student = torch.tensor([b], dtype=dtype, requires_grad=True)
    loss = alm(student, torch.tensor([a], dtype=dtype), temperature)
    (slope,) = torch.autograd.grad(loss.sum(), student)
    return [loss.item(), slope.item()]


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
