"""Mapped KL: against its definition, and what a KL over buckets must be."""

from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from distill.losses.mapped_kl import mapped_kl


class Case(NamedTuple):
    """Student logits over V; target log-masses at distinct ids (-1 pads), and outside them."""

    student_NV: Tensor
    ids_NK: Tensor
    target_NK: Tensor
    target_rest_N: Tensor


def naive(case: Case, student_NV: Tensor) -> Tensor:
    """The definition in float64, one position and one bucket at a time.

    A bucket that the student has no token for is left out (the module says why).
    """
    losses = []
    for logits_V, ids, target_K, rest in zip(student_NV, *case[1:], strict=True):
        p_V, loss = logits_V.softmax(-1), logits_V.sum() * 0
        for token, logmass in zip(ids.tolist(), target_K.double(), strict=True):
            if token >= 0 and logmass > -torch.inf:
                loss = loss + logmass.exp() * (logmass - p_V[token].log())
        others = [v for v in range(len(p_V)) if v not in ids.tolist()]
        if others and rest > -torch.inf:
            rest = rest.double()
            loss = loss + rest.exp() * (rest - p_V[others].sum().log())
        losses.append(loss)
    return torch.stack(losses)


def run(case: Case, student_NV: Tensor | None = None) -> Tensor:
    student_NV = case.student_NV if student_NV is None else student_NV
    return mapped_kl(
        *at_ids(student_NV, case.ids_NK),
        case.target_NK.to(student_NV.dtype),
        case.target_rest_N.to(student_NV.dtype),
    )


def at_ids(student_NV: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the ids and of all other tokens, row by row."""
    rest = []
    for logprobs_V, ids_K in zip(student_NV.log_softmax(-1), ids_NK.tolist(), strict=True):
        others = [v for v in range(len(logprobs_V)) if v not in ids_K]
        minus_inf = logprobs_V.new_tensor(-torch.inf)
        rest.append(logprobs_V[others].logsumexp(-1) if others else minus_inf)
    picked_NK = student_NV.log_softmax(-1).gather(1, ids_NK.clamp(min=0))
    return picked_NK.masked_fill(ids_NK < 0, -torch.inf), torch.stack(rest)


@st.composite
def cases(draw: st.DrawFn, min_width: int = 1) -> Case:
    """Ragged ids, targets with and without a rest, flat to very peaked."""
    n, width = draw(st.integers(1, 4)), draw(st.integers(min_width, 24))
    k = draw(st.integers(1, 26))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    student = draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(n, width, generator=gen)
    ids = torch.full((n, k), -1)
    target = torch.full((n, k), -torch.inf)
    rest = torch.full((n,), -torch.inf)
    for i in range(n):
        count = draw(st.integers(0, min(k, width)))
        ids[i, :count] = torch.randperm(width, generator=gen)[:count]
        has_rest = draw(st.booleans()) or count == 0
        buckets = draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(count + 1, generator=gen)
        if not has_rest:
            buckets[-1] = -torch.inf
        logmass = buckets.log_softmax(-1)
        target[i, :count], rest[i] = logmass[:-1], logmass[-1]
    slots = torch.randperm(k, generator=gen)  # padding may stand anywhere
    return Case(student, ids[:, slots], target[:, slots], rest)


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-5), (torch.float64, 1e-10, 1e-10)]
)
@given(case=cases())
def test_matches_the_definition_in_value_and_gradient(
    dtype: torch.dtype, rtol: float, atol: float, case: Case
) -> None:
    ours = case.student_NV.to(dtype).requires_grad_()
    theirs = case.student_NV.double().requires_grad_()
    loss, want = run(case, ours), naive(case, theirs)
    torch.testing.assert_close(loss.double(), want, rtol=rtol, atol=atol)
    (grad,) = torch.autograd.grad(loss.sum(), ours)
    (want_grad,) = torch.autograd.grad(want.sum(), theirs)
    torch.testing.assert_close(grad.double(), want_grad, rtol=rtol, atol=atol)


@given(cases())
def test_never_negative_where_the_student_has_every_bucket(case: Case) -> None:
    covers_all = (case.ids_NK >= 0).sum(-1) == case.student_NV.shape[1]
    loss = run(case, case.student_NV.double())
    assert (loss[~covers_all] >= -1e-6).all()
    assert (loss >= -0.36788 - 1e-6).all(), "below -1/e"


@given(cases(), st.data())
def test_offsets_slot_order_padding_and_batch_mates_change_nothing(
    case: Case, data: st.DataObject
) -> None:
    base = run(case)
    order = torch.tensor(data.draw(st.permutations(range(case.ids_NK.shape[1]))))
    pad = (0, data.draw(st.integers(0, 3)))
    variants = [
        case._replace(student_NV=case.student_NV + 7.0),
        case._replace(ids_NK=case.ids_NK[:, order], target_NK=case.target_NK[:, order]),
        case._replace(
            ids_NK=torch.nn.functional.pad(case.ids_NK, pad, value=-1),
            target_NK=torch.nn.functional.pad(case.target_NK, pad, value=-torch.inf),
        ),
    ]
    for variant in variants:
        torch.testing.assert_close(run(variant), base, rtol=1e-5, atol=1e-5)
    for i in range(len(base)):
        one = run(Case(*(x[i : i + 1] for x in case)))
        torch.testing.assert_close(one, base[i : i + 1], rtol=0, atol=1e-6)


@given(cases(min_width=2))
def test_zero_with_zero_gradient_for_a_student_that_agrees(case: Case) -> None:
    """The student itself as the teacher, merged into the same buckets."""
    picked_NK, rest_N = at_ids(case.student_NV, case.ids_NK)
    student = case.student_NV.clone().requires_grad_()
    loss = mapped_kl(*at_ids(student, case.ids_NK), picked_NK, rest_N)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.abs().max() == 0
    assert grad.abs().max() < 1e-6


@given(cases(), st.data())
def test_finer_buckets_only_raise_it_up_to_the_dense_kl(case: Case, data: st.DataObject) -> None:
    """One vocabulary on both sides: the first k tokens by id, k rising to V, never above dense."""
    n, width = case.student_NV.shape
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    student = case.student_NV.double()
    teacher = 2 * torch.randn(n, width, generator=gen).double()
    per_k = []
    for k in range(width + 1):
        ids = torch.arange(k).repeat(n, 1)
        per_k.append(mapped_kl(*at_ids(student, ids), *at_ids(teacher, ids)))
    q_NV = teacher.softmax(-1)
    dense = (q_NV * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1)
    assert (torch.stack(per_k).diff(dim=0) >= -1e-9).all()
    torch.testing.assert_close(per_k[-1], dense, rtol=1e-9, atol=1e-9)


def test_a_rest_by_subtraction_would_be_noise_where_the_student_is_good() -> None:
    """The claim behind the logsumexp: the student's rest is e^-30, and 1 - sum(p) cannot see it."""
    logits = torch.tensor([[15.0, 14.0, -15.0, -16.0, -17.0]])
    ids = torch.tensor([[0, 1]])
    case = Case(logits, ids, torch.tensor([[-0.4, -1.2]]), torch.tensor([-3.4]))
    torch.testing.assert_close(run(case).double(), naive(case, logits.double()))
    seen = logits.log_softmax(-1)[:, :2].exp().sum()
    assert abs(float(1 - seen)) < 1e-6
    true_rest = logits.double().softmax(-1)[:, 2:].sum()
    assert abs(float((1 - seen) / true_rest) - 1) > 0.5


def test_a_student_without_other_tokens_is_drawn_towards_the_targets_proportions() -> None:
    """Three tokens, all of them targets, and a teacher with mass elsewhere."""
    target = torch.tensor([0.4, 0.2, 0.1]).log()
    student = target[None].clone().requires_grad_()
    ids = torch.arange(3)[None]
    loss = mapped_kl(*at_ids(student, ids), target[None], torch.tensor([0.3]).log())
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(loss).all()
    assert grad.abs().max() < 1e-6


def test_rows_without_a_target_are_zero_without_gradient() -> None:
    """Unpaired positions, with whatever the head left there."""
    leaf = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    picked = leaf.masked_fill(torch.tensor([[True] * 3, [False] * 3]), -torch.inf)
    nothing = torch.full((2,), -torch.inf)
    loss = mapped_kl(picked, nothing, torch.full((2, 3), -torch.inf), nothing)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    assert loss.tolist() == [0, 0]
    assert grad.abs().max() == 0


def test_no_position_gives_no_value_and_no_nan() -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    loss = mapped_kl(empty, torch.zeros(0), torch.zeros(0, 3), torch.zeros(0))
    (grad,) = torch.autograd.grad(loss.sum(), empty)
    assert loss.shape == (0,)
    assert grad.shape == (0, 3)


def test_half_precision_is_summed_in_float32() -> None:
    gen = torch.Generator().manual_seed(0)
    half = [torch.randn(3, 301, generator=gen).log_softmax(-1).bfloat16() for _ in range(2)]
    student, target = ((x[:, :-1], x[:, -1]) for x in half)
    got = mapped_kl(*student, *target)
    want = mapped_kl(*(x.double() for x in student), *(x.double() for x in target))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_on_a_saturated_student(dtype: torch.dtype) -> None:
    logits = torch.full((1, 32), -1e4, dtype=dtype)
    logits[0, 3] = 1e4
    logits.requires_grad_()
    ids = torch.tensor([[3, 5, -1]])
    loss = mapped_kl(
        *at_ids(logits.float(), ids),
        torch.tensor([[-0.1, -3.0, -torch.inf]]),
        torch.tensor([-3.0]),
    )
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()
