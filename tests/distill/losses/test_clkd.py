"""CLKD over columns: against its definition, from a store against two live models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.losses.clkd import COLUMNS, clkd
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from tests.distill.losses.test_multilevel_ot import arguments, cases, sequence
from tests.kit.loss_laws import Law
from tests.kit.students import ragged_rows, trainer_of

WIDTH = len(tiny.byte_bpe())


def naive(p_Nk: Tensor, q_Nk: Tensor, lengths: list[int]) -> Tensor:
    """The definition in float64 on probabilities, one number at a time."""
    losses, at = [], 0
    for length in lengths:
        p, q = p_Nk[at : at + length], q_Nk[at : at + length]
        at, k = at + length, p_Nk.shape[1]
        total = p.sum() * 0
        for x_of, weight in ((lambda x: x, 0.5), (lambda x: x.T, 1.0)):  # rows; columns, twice
            for a, b in zip(x_of(p), x_of(q), strict=True):
                total = total + weight * (unit(a) - unit(b)).square().sum() / (length * k)
        difference = spread(p) - spread(q)
        losses.append(total + 0.4 * difference.square().sum() / k**2)
    return torch.stack(losses)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt() if (x != 0).any() else x * 0


def spread(x: Tensor) -> Tensor:
    """sum_j (x_j - mean)(x_j - mean)^T / (k - 1), column by column."""
    total = torch.zeros(len(x), len(x), dtype=x.dtype)
    for column in x.T:
        off = column - column.sum() / len(column)
        total = total + torch.outer(off, off)
    return total / max(1, x.shape[1] - 1)


LAWS = [
    Law(
        "clkd",
        clkd,
        arguments(),
        cases(),
        lambda case, student_NV: clkd(
            student_NV, case.teacher_NV.to(student_NV.dtype), case.lengths
        ),
        lambda case, student_NV: naive(
            student_NV.exp(), case.teacher_NV.double().exp(), case.lengths
        ),
        float32=(1e-4, 1e-5),
        slopes=10.0,
        row=sequence,
        mates=(1e-13, 1e-13),
    )
]


def test_a_student_equal_to_its_teacher_loses_nothing_and_learns_nothing() -> None:
    gen = torch.Generator().manual_seed(0)
    same = (3 * torch.randn(4, 9, generator=gen)).double().log_softmax(-1)
    ours = same.clone().requires_grad_()
    value = clkd(ours, same, [4])
    (grad,) = torch.autograd.grad(value.sum(), ours)
    assert value.item() == 0
    assert float(grad.abs().max()) < 1e-15
    shifted = clkd(same, same.roll(1, 0), [4])
    assert float(shifted) > 0.01


def test_a_long_sequence_takes_no_memory_for_pairs_of_positions_and_has_the_same_value() -> None:
    gen = torch.Generator().manual_seed(1)
    p, q = (torch.randn(30, 7, generator=gen).double().log_softmax(-1) for _ in range(2))
    p.requires_grad_()
    found, want = clkd(p, q, [30]), naive(p.exp(), q.exp(), [30])
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x.sum(), p)[0] for x in (found, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    single = clkd(p.detach().float().requires_grad_(), p.detach().float(), [30])
    assert abs(single.item()) < 1e-12


def columns_of(logits: Tensor) -> Tensor:
    """(T, k) probabilities at the columns of a sequence, of logits at one scale."""
    p = (logits / (logits.std(-1, keepdim=True) + 1e-4)).softmax(-1)
    return p[:, p.sum(0).argsort(descending=True)[:COLUMNS]]


@pytest.mark.parametrize("rounded", [False, True])
def test_the_loss_of_a_store_is_the_live_one_within_what_rounding_can_change(
    tmp_path: Path, rounded: bool
) -> None:
    student, teacher = tiny.llama(WIDTH), tiny.llama(WIDTH, seed=7)
    how: dict[str, Any] = {"top_k": WIDTH, "logit_std": True, "rounded": rounded}
    store = FakeStore.from_teacher(teacher, tiny.byte_bpe(), ragged_rows(), tmp_path / "t", **how)
    trainer = trainer_of(student, store, tmp_path, eval_store=store, loss="clkd", uncovered="none")
    found = trainer.evaluate()["eval_clkd_loss"]
    want = float(torch.stack(live(student, teacher)).mean())
    assert found == pytest.approx(want, rel=0.02 if rounded else 1e-4)
    how["shifted"] = True
    off = FakeStore.from_teacher(student, tiny.byte_bpe(), ragged_rows(), tmp_path / "u", **how)
    right = FakeStore.from_teacher(
        student, tiny.byte_bpe(), ragged_rows(), tmp_path / "v", **(how | {"shifted": False})
    )
    losses = [
        trainer_of(
            student, each, tmp_path, eval_store=each, loss="clkd", uncovered="none"
        ).evaluate()
        for each in (right, off)
    ]
    right_loss, off_loss = (each["eval_clkd_loss"] for each in losses)
    assert right_loss < (0.1 * off_loss if rounded else 1e-6)
    assert off_loss > 1e-2


def live(student: PreTrainedModel, teacher: PreTrainedModel) -> list[Tensor]:
    """Of each row, in float64; paired by position, the student's end of text left out."""
    values = []
    for segments in ragged_rows():
        tokens = ByteTokenizer(tiny.byte_bpe()).encode(segments)
        at = np.flatnonzero(tokens.has_record) - 1
        if not len(at[:-1]):
            continue
        p, q = (
            columns_of(dense_logprobs(model, tokens.token_ids)[at]) for model in (student, teacher)
        )
        values.append(naive(p[:-1], q[:-1], [len(at) - 1])[0])
    return values
