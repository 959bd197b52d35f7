"""Tail KL of every kind: against its definition, and what a divergence over buckets must be."""

import math
from typing import get_args

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from distill.losses.mapped_kl import mapped_kl
from distill.losses.tail_kl import FLOOR_NATS, Kind, tail_kl
from tests.distill.losses.test_mapped_kl import Case, at_ids, cases

KINDS: tuple[Kind, ...] = get_args(Kind)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def run(case: Case, kind: Kind, student_NV: Tensor | None = None) -> Tensor:
    student_NV = case.student_NV if student_NV is None else student_NV
    teacher = (case.target_NK.to(student_NV.dtype), case.target_rest_N.to(student_NV.dtype))
    return tail_kl(*at_ids(student_NV, case.ids_NK), *teacher, kind)


def naive(case: Case, kind: Kind, student_NV: Tensor) -> Tensor:
    """The definition in float64, one position and one bucket at a time."""
    losses = []
    for logits_V, ids, target_K, rest in zip(student_NV, *case[1:], strict=True):
        p_V, loss = logits_V.softmax(-1), logits_V.sum() * 0
        others = [v for v in range(len(p_V)) if v not in ids.tolist()]
        buckets = [
            (target.exp(), p_V[token])
            for token, target in zip(ids.tolist(), target_K.double(), strict=True)
            if token >= 0
        ]
        buckets.append((rest.double().exp(), p_V[others].sum()))
        for q, p in buckets:
            loss = loss + bucket_value(q, p, kind)
        losses.append(loss)
    return torch.stack(losses)


def bucket_value(q: Tensor, p: Tensor, kind: Kind) -> Tensor:
    """One bucket's share of the divergence."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return a * (a / b).log() if a > 0 else a * 0

    if kind == "forward":
        return kl(q, p) if p > 0 else p * 0
    if kind == "reverse":
        return kl(p, q.clamp(min=math.exp(FLOOR_NATS)))
    share = {"jsd": 0.5, "skew": 0.1}[kind]
    m = share * q + (1 - share) * p
    return kl(q, m) if kind == "skew" else (kl(q, m) + kl(p, m)) / 2


@EVERY_KIND
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float32, 2e-5, 1e-4), (torch.float64, 1e-10, 1e-10)]
)
@given(case=cases())
def test_matches_the_definition_in_value_and_gradient(
    dtype: torch.dtype, rtol: float, atol: float, kind: Kind, case: Case
) -> None:
    ours = case.student_NV.to(dtype).requires_grad_()
    theirs = case.student_NV.double().requires_grad_()
    loss, want = run(case, kind, ours), naive(case, kind, theirs)
    torch.testing.assert_close(loss.double(), want, rtol=rtol, atol=atol)
    (grad,) = torch.autograd.grad(loss.sum(), ours)
    (want_grad,) = torch.autograd.grad(want.sum(), theirs)
    torch.testing.assert_close(grad.double(), want_grad, rtol=rtol, atol=atol)


@given(cases())
def test_the_forward_kind_is_mapped_kl_of_a_map_that_changes_nothing(case: Case) -> None:
    want = mapped_kl(*at_ids(case.student_NV, case.ids_NK), case.target_NK, case.target_rest_N)
    torch.testing.assert_close(run(case, "forward"), want, rtol=1e-6, atol=1e-6)


@EVERY_KIND
@given(case=cases())
def test_never_negative_and_jsd_at_most_log_2(kind: Kind, case: Case) -> None:
    covers_all = (case.ids_NK >= 0).sum(-1) == case.student_NV.shape[1]
    loss = run(case, kind, case.student_NV.double())
    assert (loss[~covers_all] >= -1e-6).all()
    if kind == "jsd":
        assert (loss <= math.log(2) + 1e-6).all()
    if kind == "skew":
        assert (loss <= -math.log(0.1) + 1e-6).all()


@EVERY_KIND
@given(case=cases(), data=st.data())
def test_offsets_slot_order_padding_and_batch_mates_change_nothing(
    kind: Kind, case: Case, data: st.DataObject
) -> None:
    base = run(case, kind)
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
        torch.testing.assert_close(run(variant, kind), base, rtol=1e-5, atol=1e-5)
    for i in range(len(base)):
        one = run(Case(*(x[i : i + 1] for x in case)), kind)
        torch.testing.assert_close(one, base[i : i + 1], rtol=0, atol=1e-6)


@EVERY_KIND
@given(case=cases(min_width=2))
def test_zero_with_zero_gradient_for_a_student_that_agrees(kind: Kind, case: Case) -> None:
    """The student itself as the teacher, merged into the same buckets."""
    picked_NK, rest_N = at_ids(case.student_NV, case.ids_NK)
    student = case.student_NV.clone().requires_grad_()
    loss = tail_kl(*at_ids(student, case.ids_NK), picked_NK, rest_N, kind)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.abs().max() < 1e-6
    assert grad.abs().max() < 1e-6


@EVERY_KIND
@given(case=cases(), data=st.data())
def test_finer_buckets_only_raise_it_up_to_the_dense_divergence(
    kind: Kind, case: Case, data: st.DataObject
) -> None:
    n, width = case.student_NV.shape
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    student = case.student_NV.double()
    teacher = 2 * torch.randn(n, width, generator=gen).double()
    per_k = []
    for k in range(width + 1):
        ids = torch.arange(k).repeat(n, 1)
        per_k.append(tail_kl(*at_ids(student, ids), *at_ids(teacher, ids), kind))
    p_NV, q_NV = student.softmax(-1), teacher.softmax(-1)
    dense = [
        sum(bucket_value(q, p, kind) for q, p in zip(q_V, p_V, strict=True))
        for q_V, p_V in zip(q_NV, p_NV, strict=True)
    ]
    assert (torch.stack(per_k).diff(dim=0) >= -1e-9).all()
    torch.testing.assert_close(per_k[-1], torch.tensor(dense).double(), rtol=1e-7, atol=1e-9)


def test_a_renormalised_top_k_would_teach_that_all_else_is_impossible() -> None:
    """The claim behind the tail bucket: without it, the teacher itself is not at the minimum."""
    teacher = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]], dtype=torch.float64)
    ids = torch.tensor([[0, 1]])
    picked, rest = at_ids(teacher, ids)
    student = teacher.clone().requires_grad_()
    renormalised = tail_kl(
        *at_ids(student, ids), picked.log_softmax(-1), torch.full_like(rest, -torch.inf)
    )
    (grad,) = torch.autograd.grad(renormalised.sum(), student)
    assert (grad[0, 2:] > 0.001).all(), "pushes the tail down"
    (grad,) = torch.autograd.grad(tail_kl(*at_ids(student, ids), picked, rest).sum(), student)
    assert grad.abs().max() < 1e-12


@EVERY_KIND
def test_rows_of_no_record_are_zero_without_gradient(kind: Kind) -> None:
    leaf = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    picked = leaf.masked_fill(torch.tensor([[True] * 3, [False] * 3]), -torch.inf)
    nothing = torch.full((2,), -torch.inf)
    for rest in (nothing, torch.zeros(2)):
        loss = tail_kl(picked, rest, torch.full((2, 3), -torch.inf), nothing, kind)
        (grad,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)
        assert loss.tolist() == [0, 0]
        assert grad.abs().max() == 0


@EVERY_KIND
def test_no_position_gives_no_value_and_no_nan(kind: Kind) -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    loss = tail_kl(empty, torch.zeros(0), torch.zeros(0, 3), torch.zeros(0), kind)
    (grad,) = torch.autograd.grad(loss.sum(), empty)
    assert (loss.shape, grad.shape) == ((0,), (0, 3))


@EVERY_KIND
@pytest.mark.parametrize("tail", [-3.0, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_on_a_saturated_student(dtype: torch.dtype, tail: float, kind: Kind) -> None:
    """And on a teacher that rules out all but its entries."""
    for best in (3, 20):
        logits = torch.full((1, 32), -1e4, dtype=dtype)
        logits[0, best] = 1e4
        logits.requires_grad_()
        student = at_ids(logits.float(), torch.tensor([[3, 5, -1]]))
        loss = tail_kl(
            *student, torch.tensor([[-0.1, -3.0, -torch.inf]]), torch.tensor([tail]), kind
        )
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()


@EVERY_KIND
def test_half_precision_is_summed_in_float32(kind: Kind) -> None:
    gen = torch.Generator().manual_seed(0)
    half = [torch.randn(3, 301, generator=gen).log_softmax(-1).bfloat16() for _ in range(2)]
    student, teacher = ((x[:, :-1], x[:, -1]) for x in half)
    got = tail_kl(*student, *teacher, kind)
    want = tail_kl(*(x.double() for x in student), *(x.double() for x in teacher), kind)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
