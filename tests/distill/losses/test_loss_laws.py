"""Every loss against its definition, and what none may feel: each test file lists its `LAWS`."""

import importlib
import pkgutil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tests.distill.losses as here
from distill.losses import all_losses
from tests.kit.loss_laws import Buckets, Law, at_ids, bucket_value, buckets

MODULES = [
    importlib.import_module(f"{here.__name__}.{each.name}")
    for each in pkgutil.iter_modules(here.__path__)
    if each.name != "test_loss_laws"
]
LAWS: list[Law] = [law for module in MODULES for law in getattr(module, "LAWS", ())]
#: A third of the examples of other laws: each is many small steps of torch, for each loss.
DEAR = settings(max_examples=settings().max_examples // 3)
EACH = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
#: Those of buckets, which obey more.
DIVERGENCES: dict[str, str] = {
    "mapped_kl": "forward",
    **{f"tail_kl {kind}": kind for kind in ("forward", "reverse", "jsd", "skew")},
}
EACH_DIVERGENCE = pytest.mark.parametrize(
    ("law", "kind"),
    [(law, DIVERGENCES[law.name]) for law in LAWS if law.name in DIVERGENCES],
    ids=DIVERGENCES,
)


def test_every_loss_is_in_the_table() -> None:
    of_rows = {"cot2align"}  # of hidden states, not of logits: its own file has its laws
    assert {law.name.split()[0] for law in LAWS} == set(all_losses()) - of_rows
    assert DIVERGENCES.keys() < {law.name for law in LAWS}


@EACH
@DEAR
@given(data=st.data())
def test_matches_the_definition_in_value_and_gradient(law: Law, data: st.DataObject) -> None:
    """In float32 and float64; the definition is the dear part, so both have one of it."""
    case = data.draw(law.cases)
    theirs = case.student_NV.double().requires_grad_()
    want = law.naive(case, theirs)
    (want_grad,) = torch.autograd.grad(want.sum(), theirs)
    is_there = case.student_NV > -torch.inf  # what a student has not has no slope
    for dtype, (rtol, atol) in ((torch.float32, law.float32), (torch.float64, law.float64)):
        ours = case.student_NV.to(dtype).requires_grad_()
        loss = law.values(case, ours)
        (grad,) = torch.autograd.grad(loss.sum(), ours)
        assert loss.dtype == dtype
        torch.testing.assert_close(loss.double(), want, rtol=rtol, atol=atol)
        close = {"rtol": law.slopes * rtol, "atol": law.slopes * atol}
        torch.testing.assert_close(grad.double()[is_there], want_grad[is_there], **close)
        assert torch.isfinite(grad).all()


@EACH
@DEAR
@given(data=st.data())
def test_offsets_order_padding_and_batch_mates_change_nothing(
    law: Law, data: st.DataObject
) -> None:
    case = data.draw(law.cases)
    base = law.values(case, case.student_NV)
    rtol, atol = law.same_within
    for variant in law.same(case, data):
        same = law.values(variant, variant.student_NV)
        torch.testing.assert_close(same, base, rtol=rtol, atol=atol)
    together = law.values(case, case.student_NV.double())
    for i in range(together.shape[-1]):
        one = law.row_of(case, i)
        alone = law.values(one, one.student_NV.double())
        rtol, atol = law.mates
        torch.testing.assert_close(alone, together[..., i : i + 1], rtol=rtol, atol=atol)


def first(values: Any) -> Tensor:
    """The loss, without its bound."""
    found: Tensor = values[0] if isinstance(values, tuple) else values
    return found


@EACH
def test_no_position_gives_no_value_and_no_nan(law: Law) -> None:
    nothing = [x[:0] if isinstance(x, Tensor | list) else x for x in law.arguments]
    empty = nothing[0].requires_grad_()
    loss = first(law.function(empty, *nothing[1:]))
    (grad,) = torch.autograd.grad(loss.sum(), empty)
    assert (loss.shape, grad.shape) == ((0,), empty.shape)


@EACH
def test_half_precision_is_summed_in_float32(law: Law) -> None:
    def of(dtype: torch.dtype) -> list[Any]:
        return [x.to(dtype) if isinstance(x, Tensor) else x for x in half]

    half = [x.bfloat16() if isinstance(x, Tensor) else x for x in law.arguments]
    got, want = first(law.function(*half)), first(law.function(*of(torch.float64)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@EACH
def test_finite_on_a_saturated_student(law: Law, dtype: torch.dtype) -> None:
    for case in law.saturated:
        logits = case.student_NV.to(dtype).requires_grad_()
        values = law.values(case, logits.float())
        (grad,) = torch.autograd.grad(values.sum(), logits)
        assert torch.isfinite(values).all()
        assert torch.isfinite(grad).all()


# ---- divergences over buckets ----


@EACH_DIVERGENCE
@DEAR
@given(case=buckets())
def test_a_divergence_is_never_negative_where_the_student_has_every_bucket(
    law: Law, kind: str, case: Buckets
) -> None:
    covers_all = (case.ids_NK >= 0).sum(-1) == case.student_NV.shape[1]
    loss = law.values(case, case.student_NV.double())
    assert (loss[~covers_all] >= -1e-6).all()
    assert (loss >= -0.36788 - 1e-6).all(), "below -1/e"


@EACH_DIVERGENCE
@DEAR
@given(case=buckets(min_width=2))
def test_zero_with_zero_gradient_for_a_student_that_agrees(
    law: Law, kind: str, case: Buckets
) -> None:
    """The student itself as the teacher, merged into the same buckets."""
    picked_NK, rest_N = at_ids(case.student_NV, case.ids_NK)
    student = case.student_NV.clone().requires_grad_()
    loss = law.function(*at_ids(student, case.ids_NK), picked_NK, rest_N)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.abs().max() <= (0 if law.name == "mapped_kl" else 1e-6)
    assert grad.abs().max() < 1e-6


@EACH_DIVERGENCE
@DEAR
@given(case=buckets(), data=st.data())
def test_finer_buckets_only_raise_it_up_to_the_dense_divergence(
    law: Law, kind: str, case: Buckets, data: st.DataObject
) -> None:
    """One vocabulary on both sides: the first k tokens by id, k rising to V, never above dense."""
    n, width = case.student_NV.shape
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    student = case.student_NV.double()
    teacher = 2 * torch.randn(n, width, generator=gen).double()
    per_k = []
    for k in range(width + 1):
        ids = torch.arange(k).repeat(n, 1)
        per_k.append(law.function(*at_ids(student, ids), *at_ids(teacher, ids)))
    p_NV, q_NV = student.softmax(-1), teacher.softmax(-1)
    dense = [
        sum(bucket_value(q, p, kind) for q, p in zip(q_V, p_V, strict=True))
        for q_V, p_V in zip(q_NV, p_NV, strict=True)
    ]
    assert (torch.stack(per_k).diff(dim=0) >= -1e-9).all()
    torch.testing.assert_close(per_k[-1], torch.tensor(dense).double(), rtol=1e-9, atol=1e-9)


@EACH_DIVERGENCE
def test_rows_of_no_record_are_zero_without_gradient(law: Law, kind: str) -> None:
    """Unpaired positions, with whatever the head left there."""
    leaf = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    picked = leaf.masked_fill(torch.tensor([[True] * 3, [False] * 3]), -torch.inf)
    nothing = torch.full((2,), -torch.inf)
    for rest in (nothing, torch.zeros(2)):
        loss = law.function(picked, rest, torch.full((2, 3), -torch.inf), nothing)
        (grad,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)
        assert loss.tolist() == [0, 0]
        assert grad.abs().max() == 0
