"""MultiLevelOT: against its definition, POT's Sinkhorn, one sequence whatever its batch."""

import warnings
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from distill.losses.multilevel_ot import multilevel_ot, sinkhorn
from tests.kit.loss_laws import Law


def naive(p_Nk: Tensor, q_Nk: Tensor, lengths: list[int]) -> Tensor:
    """The definition in float64 on probabilities, one position and one column at a time."""
    losses, at = [], 0
    for length in lengths:
        rows = range(at, at + length)
        had = sum((p_Nk[t] - q_Nk[t]).abs().sum() for t in rows) / length
        hat_p, hat_q = ([hat(x[t], 1) for t in rows] for x in (p_Nk, q_Nk))
        sl = p_Nk.sum() * 0
        for p_k, q_k in zip(hat_p, hat_q, strict=True):
            for p, q in zip(p_k, q_k, strict=True):
                sl = sl - (q * p.log() if q > 0 and p > 0 else 0) / length
        cool_p, cool_q = ([hat(x[t], 2) for t in rows] for x in (p_Nk, q_Nk))
        cost = torch.stack([torch.stack([(q - p).abs().sum() for p in cool_p]) for q in cool_q])
        losses.append(had + 0.1 * sl + 0.1 * transport(cost))
        at += length
    return torch.stack(losses)


def hat(values_k: Tensor, temperature: float) -> Tensor:
    """z / temperature through a softmax over the columns alone."""
    powered = torch.where(values_k > 0, values_k.clamp(min=1e-300) ** (1 / temperature), 0)
    return powered / powered.sum() if powered.sum() > 0 else powered


def transport(cost: Tensor) -> Tensor:
    """Sinkhorn as textbooks write it, without logarithms."""
    n, m = cost.shape
    kernel = (-cost / 0.1).exp()
    u, v = cost.new_full((n,), 1 / n), cost.new_full((m,), 1 / m)
    for _ in range(20):
        v = 1 / m / (kernel.T @ u)
        u = 1 / n / (kernel @ v)
    return (u[:, None] * kernel * v * cost).sum()


class Case(NamedTuple):
    """Log-probabilities at the columns of some sequences, position by position."""

    student_NV: Tensor
    teacher_NV: Tensor
    lengths: list[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Log-probabilities at k of V columns; the teacher's with gaps, even whole rows of them."""
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    k, scale = draw(st.integers(1, 9)), draw(st.sampled_from([0.3, 1.0, 3.0]))
    student, teacher = (
        (scale * torch.randn(sum(lengths), k + 4, generator=gen)).log_softmax(-1)[:, :k]
        for _ in range(2)
    )
    gaps = torch.rand(teacher.shape, generator=gen) < draw(st.sampled_from([0.0, 0.3]))
    teacher[gaps] = -torch.inf
    missing = draw(st.integers(0, k - 1))  # a student of fewer than k tokens
    student[:, k - missing :] = -torch.inf
    return Case(student, teacher, lengths)


def sequence(case: Case, i: int) -> Case:
    sides = (x.split(case.lengths)[i] for x in case[:2])
    return Case(*sides, [case.lengths[i]])


def arguments() -> tuple[Any, ...]:
    gen = torch.Generator().manual_seed(0)
    return (*torch.randn(2, 6, 50, generator=gen).log_softmax(-1), [2, 4])


LAWS = [
    Law(
        "multilevel_ot",
        multilevel_ot,
        arguments(),
        cases(),
        lambda case, student_NV: multilevel_ot(
            student_NV, case.teacher_NV.to(student_NV.dtype), case.lengths
        ),
        lambda case, student_NV: naive(
            student_NV.exp(), case.teacher_NV.double().exp(), case.lengths
        ),
        float32=(1e-4, 1e-5),
        float64=(1e-9, 1e-10),
        slopes=10.0,
        row=sequence,
        mates=(1e-13, 1e-13),
    )
]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 5), (12, 12), (1, 6)])
@pytest.mark.parametrize("rounds", [20, 300])
def test_sinkhorn_is_that_of_pot(n: int, m: int, rounds: int) -> None:
    cost = 2 * torch.rand(n, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 20 rounds do not converge
        want = ot.sinkhorn2(
            np.full(n, 1 / n), np.full(m, 1 / m), cost.numpy(), 0.1, numItermax=rounds, stopThr=0
        )
    assert plan_cost(cost, rounds) == pytest.approx(float(want), rel=1e-9, abs=1e-12)
    assert plan_cost(cost.float(), rounds) == pytest.approx(float(want), rel=1e-4, abs=1e-6)


def plan_cost(cost: Tensor, rounds: int = 20) -> float:
    """Between uniform marginals."""
    n, m = cost.shape
    sides = (cost.new_full((1, count), 1 / count) for count in (n, m))
    return float(sinkhorn(cost[None], *sides, 0.1, rounds))


def test_padding_carries_nothing_and_costs_nothing() -> None:
    gen = torch.Generator().manual_seed(0)
    costs = [2 * torch.rand(n, n, generator=gen, dtype=torch.float64) for n in (3, 5)]
    padded = torch.full((2, 5, 5), 1.7, dtype=torch.float64)
    mass = torch.zeros(2, 5, dtype=torch.float64)
    for i, cost in enumerate(costs):
        padded[i, : len(cost), : len(cost)] = cost
        mass[i, : len(cost)] = 1 / len(cost)
    want = [plan_cost(cost) for cost in costs]
    assert sinkhorn(padded, mass, mass).tolist() == pytest.approx(want, rel=1e-12)


def test_no_cost_is_beyond_what_the_kernel_holds() -> None:
    """Two distributions are 2 apart at most, and e^(-2 / 0.1) is far above float32's least."""
    disjoint = torch.full((1, 4, 4), 2.0, requires_grad=True)
    uniform = torch.full((1, 4), 0.25)
    value = sinkhorn(disjoint, uniform, uniform)
    (grad,) = torch.autograd.grad(value.sum(), disjoint)
    assert value.item() == pytest.approx(2.0, rel=1e-5)
    assert torch.isfinite(grad).all()
    assert (grad > 0).all()


def test_two_equal_sides_differ_in_nothing_but_the_entropy_of_sl() -> None:
    """HAD is 0 and moves nothing; SL has its minimum, the teacher's entropy; SD has little left."""
    gen = torch.Generator().manual_seed(0)
    same = (3 * torch.randn(4, 9, generator=gen)).double().log_softmax(-1)
    sl = -(same.exp() * same).sum(-1).mean()
    cost = torch.cdist((same / 2).softmax(-1), (same / 2).softmax(-1), p=1)
    want = 0.1 * sl + 0.1 * plan_cost(cost)
    torch.testing.assert_close(multilevel_ot(same, same, [4]), want[None], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_on_a_saturated_student(dtype: torch.dtype) -> None:
    logits = torch.full((2, 8), -1e4, dtype=dtype)
    logits[:, 3] = 1e4
    logits.requires_grad_()
    teacher = torch.zeros(2, 8).log_softmax(-1)
    loss = multilevel_ot(logits.float().log_softmax(-1), teacher, [2])
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()
