"""ULD from a cached top-k: against its definition, its certified error, its laws and claims."""

import math
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from distill.losses.uld import uld
from tests.kit.loss_laws import Law, sure


def exact_uld(p_V: Tensor, q_V: Tensor) -> Tensor:
    """sum_i |p_i - q_i| over sorted (scaled) probabilities, the shorter side padded with zeros."""
    size = max(len(p_V), len(q_V))
    p_V, q_V = (
        torch.nn.functional.pad(x.sort(descending=True).values, (0, size - len(x)))
        for x in (p_V, q_V)
    )
    return (p_V - q_V).abs().sum()


def truncated_uld(p_V: Tensor, q_V: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition at rank k, from whole (scaled) distributions: (loss, gap)."""
    p_V, q_V = (x.sort(descending=True).values for x in (p_V, q_V))
    head = exact_uld(p_V[:k], q_V[:k])
    s, u = p_V[k:].sum(), q_V[k:].sum()
    return head + (s - u).abs(), 2 * torch.minimum(s, u)


class Case(NamedTuple):
    """Student and teacher logits; `k` stored entries of each record, at most `width`."""

    student_NV: Tensor
    teacher_NV: Tensor
    counts: list[int]
    width: int
    student_scale_N: Tensor
    teacher_scale_N: Tensor


def run(case: Case, student_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the trainer does: the student's own top-k, the teacher's from its record."""
    student_NV = case.student_NV if student_NV is None else student_NV
    entries_NK, tail_N = records(case.teacher_NV, case.counts, case.width)
    return uld(
        top(student_NV.log_softmax(-1), case.width),
        entries_NK.to(student_NV.dtype),
        tail_N.to(student_NV.dtype),
        student_log_scale_N=case.student_scale_N.to(student_NV.dtype),
        teacher_log_scale_N=case.teacher_scale_N.to(student_NV.dtype),
    )


def top(logprobs_NV: Tensor, width: int) -> Tensor:
    found = logprobs_NV.topk(min(width, logprobs_NV.shape[1])).values
    return torch.nn.functional.pad(found, (0, width - found.shape[1]), value=-torch.inf)


def records(teacher_NV: Tensor, counts: list[int], width: int) -> tuple[Tensor, Tensor]:
    """The largest log-probabilities of each row, as many as it holds, and the log of the rest."""
    sorted_NV = teacher_NV.double().log_softmax(-1).sort(descending=True).values
    entries_NK, counts_N1 = top(sorted_NV, width), torch.tensor(counts)[:, None]
    ranks_V = torch.arange(sorted_NV.shape[1])
    tail_N = sorted_NV.masked_fill(ranks_V < counts_N1, -torch.inf).logsumexp(-1)
    return entries_NK.masked_fill(torch.arange(width) >= counts_N1, -torch.inf), tail_N


def naive(case: Case, student_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Position by position in float64, from whole distributions."""
    found = []
    for i, count in enumerate(case.counts):
        p_V = student_NV[i].softmax(-1) * case.student_scale_N[i].double().exp()
        q_V = case.teacher_NV[i].double().softmax(-1) * case.teacher_scale_N[i].double().exp()
        found.append(truncated_uld(p_V, q_V, count))
    losses, gaps = zip(*found, strict=True)
    return torch.stack(losses), torch.stack(gaps)


@st.composite
def cases(draw: st.DrawFn, scaled: bool = True) -> Case:
    """Vocabularies of 1 to 60, flat to very peaked, ragged counts, K below and above both."""
    n, student_width, teacher_width = (draw(st.integers(1, top)) for top in (4, 60, 60))
    width = draw(st.integers(1, 70))
    counts = draw(st.lists(st.integers(0, min(width, teacher_width)), min_size=n, max_size=n))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharp = [draw(st.sampled_from([0.1, 1.0, 4.0])) for _ in range(2)]
    student = sharp[0] * torch.randn(n, student_width, generator=gen)
    teacher = sharp[1] * torch.randn(n, teacher_width, generator=gen)
    scales = 3 * torch.rand(2, n, generator=gen) * (-1 if scaled else 0)
    return Case(student, teacher, counts, width, scales[0], scales[1])


def same(case: Case, data: st.DataObject) -> list[Case]:
    """Offsets of both sides' logits, another order of the vocabulary, a wider batch."""
    order = torch.tensor(data.draw(st.permutations(range(case.student_NV.shape[1]))))
    extra = data.draw(st.integers(0, 5))
    return [
        case._replace(student_NV=case.student_NV + 7.0, teacher_NV=case.teacher_NV - 3.0),
        case._replace(student_NV=case.student_NV[:, order]),
        case._replace(width=case.width + extra),
    ]


def arguments() -> tuple[Tensor, ...]:
    gen = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(3, 500, generator=gen).log_softmax(-1).sort(descending=True).values
        for _ in range(2)
    )
    return student, teacher, torch.full((3,), -torch.inf)


def saturated() -> Case:
    """Of a teacher nearly as sure, whose record holds three entries."""
    teacher = torch.tensor([[0.999, math.exp(-8), math.exp(-9), *[math.exp(-7) / 5] * 5]]).log()
    return Case(sure(3), teacher, [3], 4, torch.zeros(1), torch.zeros(1))


LAWS = [
    Law(
        "uld",
        uld,
        arguments(),
        cases(),
        lambda case, student_NV: torch.stack(run(case, student_NV)),
        lambda case, student_NV: bounded(*naive(case, student_NV)),
        float32=(0.0, 1e-5),
        float64=(0.0, 1e-10),
        same=same,
        same_within=(0.0, 2e-6),
        mates=(0.0, 0.0),
        saturated=(saturated(),),
    )
]


def bounded(loss_N: Tensor, gap_N: Tensor) -> Tensor:
    """Both, the bound without gradient."""
    return torch.stack([loss_N, gap_N.detach()])


@given(cases())
def test_the_gradient_also_goes_into_the_scale(case: Case) -> None:
    ours, theirs = (case.student_scale_N.double().requires_grad_() for _ in range(2))
    loss, _ = run(case._replace(student_scale_N=ours), case.student_NV.double())
    want, _ = naive(case._replace(student_scale_N=theirs), case.student_NV.double())
    (grad,) = torch.autograd.grad(loss.sum(), ours)
    (want_grad,) = torch.autograd.grad(want.sum(), theirs)
    torch.testing.assert_close(grad, want_grad, rtol=0, atol=1e-10)


@given(cases())
def test_the_exact_loss_is_never_further_away_than_the_gap(case: Case) -> None:
    """The certificate: whatever the vocabularies, the rank and the scales."""
    for dtype, slack in ((torch.float32, 4e-6), (torch.float64, 1e-14)):
        loss, gap = run(case, case.student_NV.to(dtype))
        for i in range(len(loss)):
            p_V = case.student_NV[i].double().softmax(-1) * case.student_scale_N[i].double().exp()
            q_V = case.teacher_NV[i].double().softmax(-1) * case.teacher_scale_N[i].double().exp()
            exact = exact_uld(p_V, q_V)
            assert gap[i] >= 0
            assert loss[i] - slack <= exact <= loss[i] + gap[i] + slack


@pytest.mark.parametrize("scale", [0.0, -1.5])
def test_the_gap_is_certified_at_a_rank_far_below_the_vocabulary(scale: float) -> None:
    """K = 8 of 30,000 and of 20,000, from almost uniform to almost certain; the bound is used."""
    gen = torch.Generator().manual_seed(0)
    sharp = torch.linspace(0.5, 6, 12)[:, None]
    student = sharp * torch.randn(12, 20_000, generator=gen)
    teacher = sharp.flip(0) * torch.randn(12, 30_000, generator=gen)
    scales = torch.full((12,), scale)
    case = Case(student, teacher, [8] * 12, 8, scales, scales.flip(0) / 2)
    loss, gap = run(case, student.double())
    p_NV = student.double().softmax(-1) * case.student_scale_N.double().exp()[:, None]
    q_NV = teacher.double().softmax(-1) * case.teacher_scale_N.double().exp()[:, None]
    off = torch.stack([exact_uld(p, q) for p, q in zip(p_NV, q_NV, strict=True)]) - loss
    assert (off >= -1e-12).all()
    assert (off <= gap + 1e-12).all()
    assert off.max() > 0.05, "the truncation costs nothing here: the test shows nothing"
    assert (off / gap).max() > 0.5, "the bound is far from tight here"


@given(cases(scaled=False))
def test_equal_to_the_exact_loss_when_nothing_is_cut(case: Case) -> None:
    counts = [case.teacher_NV.shape[1]] * len(case.counts)
    width = max(case.teacher_NV.shape[1], case.student_NV.shape[1])
    # A record cannot hold entries beyond the teacher's vocabulary; the student's go in its tail.
    loss, gap = run(case._replace(counts=counts, width=width), case.student_NV.double())
    want = [
        exact_uld(p.double().softmax(-1), q.double().softmax(-1))
        for p, q in zip(case.student_NV, case.teacher_NV, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(want), rtol=0, atol=1e-12)
    assert gap.max() < 1e-12


@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(
    k: int, dtype: torch.dtype
) -> None:
    teacher = 3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logprobs_NV = teacher.log_softmax(-1).sort(descending=True).values
    tail_N = logprobs_NV[:, k:].logsumexp(-1)
    scale_N = -torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=dtype)
    student = teacher.clone().requires_grad_()
    loss, _ = uld(
        top(student.log_softmax(-1), k),
        logprobs_NV[:, :k],
        tail_N,
        student_log_scale_N=scale_N,
        teacher_log_scale_N=scale_N,
    )
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.abs().max() == 0
    assert grad.abs().max() == 0


def test_zero_padding_the_teacher_would_push_the_student_away() -> None:
    """The claim that decides the tail bucket: without it, the teacher itself has a loss."""
    teacher = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    entries_NK, tail_N = records(teacher, [4] * 5, 4)
    student = teacher.clone().requires_grad_()
    padded_NV = torch.nn.functional.pad(entries_NK.float().exp(), (0, 36))
    zero_padded = (student.softmax(-1).sort(descending=True).values - padded_NV).abs().sum()
    (grad,) = torch.autograd.grad(zero_padded, student)
    assert zero_padded > 0.9 * tail_N.exp().sum()
    assert grad.abs().max() > 1e-2


@given(cases(scaled=False))
def test_one_scale_on_both_sides_scales_the_loss(case: Case) -> None:
    """Also far below rounding: a long group's probability may be e^-30."""
    tiny = torch.full_like(case.student_scale_N, -30.0)
    base = torch.stack(run(case, case.student_NV.double()))
    scaled = run(
        case._replace(student_scale_N=tiny, teacher_scale_N=tiny), case.student_NV.double()
    )
    scale = tiny.double().exp()
    torch.testing.assert_close(torch.stack(scaled) / scale, base, rtol=1e-9, atol=1e-13)


def test_a_single_bumped_logit_is_felt_at_its_own_position_only() -> None:
    gen = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 20, generator=gen), torch.randn(4, 30, generator=gen)
    scale = torch.zeros(4)
    case = Case(student, teacher, [5] * 4, 5, scale, scale)
    bumped = student.clone()
    bumped[2, 7] += 1
    moved = (run(case)[0] - run(case, bumped)[0]).abs()
    assert moved[2] > 1e-3
    assert moved[[0, 1, 3]].max() == 0


def test_a_record_without_entries_is_all_tail() -> None:
    student = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    nothing = torch.full((2, 3), -torch.inf)
    loss, gap = uld(top(student.log_softmax(-1), 3), nothing, torch.zeros(2))
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.tolist() == [0, 0]
    assert gap.tolist() == [2, 2]
    assert grad.abs().max() == 0


def test_rows_that_were_not_asked_of_the_student_have_no_nan() -> None:
    """The head leaves -inf where no top-k was wanted; such a row's record is empty too."""
    leaf = torch.zeros(1, 3, requires_grad=True)
    masked = leaf.masked_fill(torch.ones(1, 3, dtype=torch.bool), -torch.inf)
    loss, _ = uld(
        masked,
        torch.full((1, 3), -torch.inf),
        torch.full((1,), -torch.inf),
        student_log_scale_N=torch.full((1,), -torch.inf),
        teacher_log_scale_N=torch.full((1,), -torch.inf),
    )
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    assert loss.tolist() == [0]
    assert grad.tolist() == [[0, 0, 0]]


def test_the_gap_carries_no_gradient() -> None:
    student = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, gap = uld(top(student.log_softmax(-1), 3), torch.full((2, 3), -2.0), torch.full((2,), -1.0))
    assert not gap.requires_grad
