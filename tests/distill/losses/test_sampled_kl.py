"""Sampled KL: its definition, that its gradient is right on average, and what a head is worth."""

import math
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from distill.losses.sampled_kl import sampled_kl
from tests.kit.loss_laws import Law, sure


class Case(NamedTuple):
    """Student logits over V; entries, tail and draws of the teacher; -1 and count 0 are padding."""

    student_NV: Tensor
    ids_NK: Tensor
    teacher_NK: Tensor
    tail_N: Tensor
    draw_ids_ND: Tensor
    counts_ND: Tensor


def run(case: Case, student_NV: Tensor | None = None) -> Tensor:
    student_NV = case.student_NV if student_NV is None else student_NV
    logprobs_NV = student_NV.log_softmax(-1)
    return sampled_kl(
        logprobs_NV.gather(1, case.ids_NK.clamp(min=0)),
        logprobs_NV.gather(1, case.draw_ids_ND.clamp(min=0)),
        case.teacher_NK.to(student_NV.dtype),
        case.tail_N.to(student_NV.dtype),
        case.counts_ND,
    )


def naive(case: Case, student_NV: Tensor) -> Tensor:
    """Target built token by token in float64."""
    losses = []
    for i, logits_V in enumerate(student_NV):
        log_p, loss = logits_V.log_softmax(-1), logits_V.sum() * 0
        targets = [
            (v, float(q.double().exp()))
            for v, q in zip(case.ids_NK[i].tolist(), case.teacher_NK[i], strict=True)
        ]
        draws = int(case.counts_ND[i].sum())
        for v, count in zip(case.draw_ids_ND[i].tolist(), case.counts_ND[i].tolist(), strict=True):
            targets.append((v, float(case.tail_N[i].double().exp()) * count / max(draws, 1)))
        for v, t in targets:
            if v >= 0 and t > 0:
                loss = loss + t * (math.log(t) - log_p[v])
        losses.append(loss)
    return torch.stack(losses)


def drawn(logits_NV: Tensor, k: int, draws: int, gen: torch.Generator) -> Case:
    """What a store would hold of these teachers: k entries, and draws from all else."""
    q_NV = logits_NV.double().softmax(-1)
    top, ids = q_NV.topk(k)
    others = q_NV.scatter(1, ids, 0)
    picked = torch.multinomial(others, draws, replacement=True, generator=gen)
    counts = torch.zeros_like(q_NV).scatter_add(1, picked, torch.ones_like(picked).double())
    kept, draw_ids = counts.topk(min(draws, counts.shape[1]))
    return Case(
        logits_NV, ids, top.log(), others.sum(-1).log(), draw_ids.where(kept > 0, -1), kept.long()
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, width = draw(st.integers(1, 4)), draw(st.integers(3, 24))
    teacher = draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(n, width, generator=gen)
    k = draw(st.integers(0, width - 1))
    case = drawn(teacher, k, draw(st.integers(1, 12)), gen)
    for i in range(n):  # as of imports, of which some positions have fewer or none
        is_left = case.counts_ND[i].cumsum(0) > draw(st.integers(0, 12))
        case.counts_ND[i, is_left], case.draw_ids_ND[i, is_left] = 0, -1
    student = draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(n, width, generator=gen)
    return case._replace(student_NV=student)


def same(case: Case, data: st.DataObject) -> list[Case]:
    """An offset of the logits, and padding."""
    pad = (0, data.draw(st.integers(0, 3)))
    fill = {"ids_NK": -1, "teacher_NK": -torch.inf, "draw_ids_ND": -1, "counts_ND": 0}
    padded = {
        name: torch.nn.functional.pad(getattr(case, name), pad, value=value)
        for name, value in fill.items()
    }
    return [case._replace(student_NV=case.student_NV + 7), case._replace(**padded)]


def arguments() -> tuple[Tensor, ...]:
    gen = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 300, generator=gen).log_softmax(-1)
    tail, counts = torch.full((3,), -2.0), torch.randint(1, 5, (3, 9), generator=gen)
    return student, student[:, :9].clone(), teacher, tail, counts


LAWS = [
    Law(
        "sampled_kl",
        sampled_kl,
        arguments(),
        cases(),
        run,
        naive,
        same=same,
        saturated=(
            Case(
                sure(20),
                torch.tensor([[0, 1]]),
                torch.tensor([[-0.1, -4.0]]),
                torch.tensor([-3.0]),
                torch.tensor([[2, 3]]),
                torch.tensor([[3, 0]]),
            ),
        ),
    )
]


@given(cases())
def test_never_negative(case: Case) -> None:
    assert (run(case) >= -1e-5).all()


def gradients(k: int, draws: int, repeats: int) -> tuple[Tensor, Tensor]:
    """(repeats, V) gradients of one position over many captures, and the full vocabulary's."""
    gen = torch.Generator().manual_seed(0)
    teacher = 1.5 * torch.randn(1, 40, generator=gen, dtype=torch.float64)
    student = torch.randn(1, 40, generator=gen, dtype=torch.float64)
    case = drawn(teacher.repeat(repeats, 1), k, draws, gen)
    leaf = student.repeat(repeats, 1).requires_grad_()
    (grads,) = torch.autograd.grad(run(case, leaf).sum(), leaf)
    return grads, (student.softmax(-1) - teacher.softmax(-1)).squeeze(0)


@pytest.mark.parametrize("k", [0, 4, 12])
def test_the_gradient_is_the_full_vocabularys_on_average(k: int) -> None:
    """Each token's mean over 20,000 captures, within 4.5 of its own standard errors."""
    grads, exact = gradients(k, 8, 20_000)
    error = grads.std(0) / len(grads) ** 0.5
    assert ((grads.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()


def test_a_head_lowers_the_variance_of_as_many_entries() -> None:
    """12 stored tokens: 4 known exactly and 8 drawn, against 12 drawn."""
    with_head, without = (gradients(k, s, 5_000)[0].var(0).sum() for k, s in ((4, 8), (0, 12)))
    assert with_head < without / 2


def test_a_position_without_draws_is_compared_in_its_entries() -> None:
    """And one with neither says nothing."""
    leaf = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    entries = torch.tensor([[-0.5, -2.0], [-torch.inf, -torch.inf]])
    loss = sampled_kl(
        leaf[:, :2], leaf[:, 2:], entries, torch.tensor([-1.0, -1.0]), torch.zeros(2, 1)
    )
    want = (entries[0].exp() * (entries[0] - leaf[0, :2])).sum()
    assert loss[0].item() == pytest.approx(want.item(), rel=1e-6)
    assert loss[1] == 0
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    assert grad[1].abs().max() == 0
    assert grad[0, 2] == 0


def test_a_teacher_without_a_tail_has_nothing_to_draw() -> None:
    """K = V, whose tail is -inf: the dense KL."""
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).log_softmax(
        -1
    )
    none = torch.full((5,), -torch.inf)
    loss = sampled_kl(student, student[:, :1], teacher, none, torch.zeros(5, 1))
    dense = (teacher.exp() * (teacher - student)).sum(-1)
    torch.testing.assert_close(loss, dense, rtol=1e-5, atol=1e-6)
