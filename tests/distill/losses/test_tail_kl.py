"""Tail KL: what its kinds are bounded by, and what decided its design."""

import math
from functools import partial
from typing import get_args

import pytest
import torch
from hypothesis import given

from distill.losses.mapped_kl import mapped_kl
from distill.losses.tail_kl import Kind, tail_kl
from tests.kit.loss_laws import Buckets, at_ids, buckets, buckets_law

LAWS = [
    buckets_law(f"tail_kl {kind}", partial(tail_kl, kind=kind), kind, float32=(2e-5, 1e-4))
    for kind in get_args(Kind)
]


@given(buckets())
def test_the_forward_kind_is_mapped_kl_of_a_map_that_changes_nothing(case: Buckets) -> None:
    sides = (*at_ids(case.student_NV, case.ids_NK), case.target_NK, case.target_rest_N)
    torch.testing.assert_close(tail_kl(*sides), mapped_kl(*sides), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "most"), [("jsd", math.log(2)), ("skew", -math.log(0.1))])
@given(case=buckets())
def test_jsd_is_at_most_log_2_and_skew_log_10(kind: Kind, most: float, case: Buckets) -> None:
    student = at_ids(case.student_NV.double(), case.ids_NK)
    loss = tail_kl(*student, case.target_NK.double(), case.target_rest_N.double(), kind)
    assert (loss <= most + 1e-6).all()


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
