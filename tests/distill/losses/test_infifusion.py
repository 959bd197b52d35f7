"""InfiFusion: against its definition, against two live models, and what it sees and does not."""

from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.alignment.align import align
from distill.data.targets import student_spans
from distill.head.chunked import recomputed
from distill.head.output_head import LinearHead
from distill.head.query import HeadQuery
from distill.losses.infifusion import infifusion
from logitstore.models.output_embedding import AfterEmbedding
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.loss_laws import Law, sure
from tests.kit.students import ragged_rows, trainer_of


class Case(NamedTuple):
    """Student and teacher logits; `k` stored entries of each record, at most `width`."""

    student_NV: Tensor
    teacher_NV: Tensor
    counts: list[int]
    width: int


def standardised(logits_V: Tensor) -> Tensor:
    """The definition: probabilities of (z - mu) / (sigma + 1e-4), sorted."""
    centred_V = logits_V - logits_V.sum() / len(logits_V)
    sigma = (centred_V.square().sum() / (len(logits_V) - 1)).sqrt()
    return (centred_V / (sigma + 1e-4)).softmax(-1).sort(descending=True).values


def cut(p_V: Tensor, q_V: Tensor, k: int) -> Tensor:
    """sum_{i<=k} |p_i - q_i|; a smaller vocabulary has nothing further on."""
    p_k, q_k = (torch.nn.functional.pad(x, (0, k))[:k] for x in (p_V, q_V))
    return (p_k - q_k).abs().sum()


def naive(case: Case, student_NV: Tensor) -> Tensor:
    """Position by position in float64."""
    found = [
        cut(standardised(p_V), standardised(q_V.double()), count)
        for p_V, q_V, count in zip(student_NV, case.teacher_NV, case.counts, strict=True)
    ]
    return torch.stack(found)


def top_at_one_scale(logits_NV: Tensor, k: int) -> Tensor:
    """What the head answers about these logits: a student whose hidden states they are."""
    width = logits_NV.shape[1]
    as_it_is = torch.nn.Linear(width, width, bias=False, dtype=logits_NV.dtype)
    as_it_is.weight = torch.nn.Parameter(torch.eye(width, dtype=logits_NV.dtype))
    labels_N = torch.zeros(len(logits_NV), dtype=torch.long)
    head = LinearHead(as_it_is, AfterEmbedding(None, None, None, None))
    query = HeadQuery(labels_N, scaled_top_k=k)
    return recomputed(head, logits_NV, query, 3)["scaled_top_logprobs_NK"]


def run(case: Case, student_NV: Tensor) -> Tensor:
    """What the trainer does: the student's own top-k, the teacher's from its record."""
    q_NV = torch.stack([standardised(q_V.double()) for q_V in case.teacher_NV]).log()
    q_NK = torch.nn.functional.pad(q_NV, (0, case.width), value=-torch.inf)[:, : case.width]
    ranks_K = torch.arange(case.width)
    q_NK = q_NK.masked_fill(ranks_K >= torch.tensor(case.counts)[:, None], -torch.inf)
    return infifusion(top_at_one_scale(student_NV, case.width), q_NK.to(student_NV.dtype))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Vocabularies of 2 to 60, flat to very peaked, ragged counts, K below and above both."""
    n, student_width, teacher_width = (
        draw(st.integers(low, top)) for low, top in ((1, 4), (2, 60), (2, 60))
    )
    width = draw(st.integers(1, 70))
    counts = draw(st.lists(st.integers(0, min(width, teacher_width)), min_size=n, max_size=n))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharp = [draw(st.sampled_from([0.1, 1.0, 10.0])) for _ in range(2)]
    student = sharp[0] * torch.randn(n, student_width, generator=gen)
    teacher = sharp[1] * torch.randn(n, teacher_width, generator=gen)
    return Case(student, teacher, counts, width)


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
    return tuple(
        torch.randn(3, 500, generator=gen).log_softmax(-1).sort(descending=True).values
        for _ in range(2)
    )


LAWS = [
    Law(
        "infifusion",
        infifusion,
        arguments(),
        cases(),
        run,
        naive,
        float32=(0.0, 1e-5),
        float64=(0.0, 1e-10),
        slopes=10.0,  # they are divided by sigma, 0.1 of the flattest
        same=same,
        same_within=(0.0, 1e-5),
        saturated=(Case(sure(3), torch.randn(1, 8), [3], 4),),
    )
]


def test_how_sharp_either_side_is_does_not_matter() -> None:
    """But for the 1e-4 beside sigma: the loss is of standardised logits."""
    gen = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(5, 40, generator=gen).double() for _ in range(2))
    case = Case(student, teacher, [8] * 5, 8)
    want = run(case, student)
    torch.testing.assert_close(run(case, 9 * student), want, rtol=0, atol=1e-3)
    sharp = case._replace(teacher_NV=9 * teacher)
    torch.testing.assert_close(run(sharp, student), want, rtol=0, atol=1e-3)
    assert run(case, student.roll(3, 0)).sub(want).abs().max() > 0.01


def _four(logits: Tensor) -> Tensor:
    return top_at_one_scale(logits, min(4, logits.shape[1]))


def test_the_gradient_is_that_of_the_definition_in_finite_differences() -> None:
    gen = torch.Generator().manual_seed(2)
    for width in (1, 2, 9):
        logits = torch.randn(3, width, generator=gen).double().requires_grad_()
        if width == 1:  # nothing to choose, so nothing to learn
            (grad,) = torch.autograd.grad(top_at_one_scale(logits, 4)[:, 0].sum(), logits)
            assert grad.abs().max() == 0
        else:
            assert torch.autograd.gradcheck(_four, logits)


# ---- through the whole student side ----


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny.llama(len(tiny.unigram()), seed=7)


def live(student: PreTrainedModel, teacher: PreTrainedModel, k: int) -> list[tuple[Tensor, Any]]:
    """The loss of each shared start from two live models, and the teacher's (q_i, sigma) there."""
    found = []
    for segments in ragged_rows():
        spans, scaled, sigmas = [], [], []
        for model, reader in ((teacher, tiny.unigram()), (student, tiny.byte_bpe())):
            tokens = ByteTokenizer(reader).encode(segments)
            at = np.flatnonzero(tokens.has_record)
            spans.append(student_spans(tokens))
            with torch.no_grad():
                logits = model(torch.from_numpy(tokens.token_ids)[None]).logits[0].double()
            scaled.append([standardised(row) for row in logits[at - 1]])
            sigmas.append(logits[at - 1].std(-1))
        for t, s in align(*spans).shared_starts.tolist():
            if spans[1].is_verbatim[s]:
                q_k = scaled[0][t][:k]
                found.append((cut(scaled[1][s], q_k, k), (q_k, sigmas[0][t])))
    return found


def stored(teacher: PreTrainedModel, folder: Path, **how: Any) -> FakeStore:
    how = {"logit_std": True, "has_ids": False, **how}
    return FakeStore.from_teacher(teacher, tiny.unigram(), ragged_rows(), folder / "t", **how)


@pytest.mark.parametrize("rounded", [False, True])
def test_the_loss_of_a_store_is_the_live_one_within_what_rounding_can_change(
    teacher: PreTrainedModel, tmp_path: Path, rounded: bool
) -> None:
    """FakeStore rounds log-probabilities to 1/64 nats, and then makes them sum to one."""
    student, k = tiny.llama(len(tiny.byte_bpe())), 8
    store = stored(teacher, tmp_path, top_k=k, rounded=rounded)
    trainer = trainer_of(
        student, store, tmp_path, eval_store=store, loss="infifusion", uncovered="none"
    )
    found = trainer.evaluate()["eval_infifusion_loss"]
    values = live(student, teacher, k)
    want = float(torch.stack([value for value, _ in values]).mean())
    d = 2 / 64 if rounded else 1e-5
    bound = [float((q_k * ((d / sigma).exp() - 1)).sum()) for _, (q_k, sigma) in values]
    assert abs(found - want) <= np.mean(bound) + 1e-6
    assert np.mean(bound) < 0.1 * want
    assert rounded == (abs(found - want) > 1e-5)


def test_a_student_that_is_its_own_teacher_loses_nothing_and_shifted_by_one_it_does(
    tmp_path: Path,
) -> None:
    student, found = tiny.llama(len(tiny.byte_bpe())), []
    for shifted in (False, True):
        store = FakeStore.from_teacher(
            student, tiny.byte_bpe(), ragged_rows(), tmp_path / str(shifted),
            logit_std=True, shifted=shifted,
        )  # fmt: skip
        trainer = trainer_of(
            student, store, tmp_path, eval_store=store, loss="infifusion", uncovered="none"
        )
        found.append(trainer.evaluate()["eval_infifusion_loss"])
    assert found[0] < 1e-5
    assert found[1] > found[0] + 1e-2


def test_a_student_learns_from_it_alone(teacher: PreTrainedModel, tmp_path: Path) -> None:
    store = stored(teacher, tmp_path, top_k=16)
    trainer = trainer_of(
        tiny.llama(len(tiny.byte_bpe())), store, tmp_path, eval_store=store, loss="infifusion",
        ce_weight=0.0, uncovered="none", max_steps=20, optim="adamw_torch", learning_rate=2e-2,
    )  # fmt: skip
    before = trainer.evaluate()["eval_infifusion_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_infifusion_loss"] < 0.7 * before
