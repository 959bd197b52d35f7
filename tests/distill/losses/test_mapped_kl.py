"""Mapped KL: what decided its design. Its laws are tried with those of all losses."""

import torch

from distill.losses.mapped_kl import mapped_kl
from tests.kit.loss_laws import Buckets, at_ids, buckets_law

LAWS = [buckets_law("mapped_kl", mapped_kl, "forward")]


def test_a_rest_by_subtraction_would_be_noise_where_the_student_is_good() -> None:
    """The claim behind the logsumexp: the student's rest is e^-30, and 1 - sum(p) cannot see it."""
    logits = torch.tensor([[15.0, 14.0, -15.0, -16.0, -17.0]])
    ids = torch.tensor([[0, 1]])
    case = Buckets(logits, ids, torch.tensor([[-0.4, -1.2]]), torch.tensor([-3.4]))
    (law,) = LAWS
    torch.testing.assert_close(law.values(case, logits).double(), law.naive(case, logits.double()))
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
