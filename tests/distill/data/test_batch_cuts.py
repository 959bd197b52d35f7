"""Pieces of a batch: what is cut never belongs together, and no cut changes the loss."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from distill.data.batch_cuts import Pieces, cut, piece_of
from distill.data.collator import Collator
from distill.head import student_head as head_module
from distill.head.chunked import in_the_forward
from distill.head.output_head import LinearHead
from distill.head.query import HeadAnswer, HeadQuery
from distill.training.trainer import CachedTeacherTrainer
from logitstore.models.output_embedding import AfterEmbedding
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import ragged_rows, trainer_of

aten = torch.ops.aten
ALL = "uld:1.5,mapped_kl:0.7,alm:2,multilevel_ot:0.3"


def across_tokenizers(tmp_path: Path, **flags: Any) -> tuple[PreTrainedModel, CachedTeacherTrainer]:
    """A float64 student of another tokenizer than its teacher's, so that groups have tokens."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    store = FakeStore.from_teacher(
        teacher, tokenizer, ragged_rows(), tmp_path / "t", top_k=60, logit_std=True
    )
    student = tiny.llama(len(tiny.byte_bpe())).double()
    return student, trainer_of(student, store, tmp_path, **flags)


def loss_and_gradients(
    student: PreTrainedModel, trainer: CachedTeacherTrainer, chunk_tokens: int | None
) -> tuple[Tensor, dict[str, Tensor], dict[str, Any], Any]:
    examples = [trainer.data[i] for i in range(len(trainer.data))]
    batch = Collator(0, list(trainer.weights), chunk_tokens=chunk_tokens)(examples)
    student.zero_grad()
    loss, terms = trainer.compute_loss(student, batch, return_outputs=True)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    return loss.detach(), grads, terms, batch["pieces"]


@pytest.mark.parametrize("losses", [*ALL.split(","), ALL, "ce"])
@pytest.mark.parametrize("chunk_tokens", [17, 29, 1000])
def test_no_cut_changes_the_loss_its_gradient_or_its_terms(
    tmp_path: Path, losses: str, chunk_tokens: int
) -> None:
    student, trainer = across_tokenizers(tmp_path, loss=losses)
    want, want_grads, want_terms, none = loss_and_gradients(student, trainer, None)
    assert none is None
    got, grads, terms, pieces = loss_and_gradients(student, trainer, chunk_tokens)
    if isinstance(pieces, Pieces) and chunk_tokens < 1000:
        assert len(pieces.each) > 1
    else:
        assert pieces is not None or "multilevel_ot" in losses  # a sequence longer than a chunk
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    assert grads.keys() == want_grads.keys()
    for name, grad in want_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-7, atol=1e-9)
    for name, term in want_terms.items():
        torch.testing.assert_close(terms[name].values_P, term.values_P.detach())
        assert terms[name].index_P.tolist() == term.index_P.tolist()


def test_what_cannot_be_cut_is_taken_whole(tmp_path: Path) -> None:
    """A chunk of one label is less than a group; the loss is then made of the whole answer."""
    student, trainer = across_tokenizers(tmp_path, loss="uld:1")
    want = loss_and_gradients(student, trainer, None)[0]
    got, _, _, pieces = loss_and_gradients(student, trainer, 1)
    assert pieces is None
    torch.testing.assert_close(got, want)


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Groups of a few labels, some labels in none, over a few sequences; by every layout."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    example = np.repeat(np.arange(len(lengths)), lengths)
    first, stop, at = [], [], 0
    for length in lengths:
        end = at + length
        while at < end:
            size = draw(st.integers(1, min(3, end - at)))
            if draw(st.booleans()):
                first.append(at)
                stop.append(at + size)
            at += size
    firsts, stops = np.array(first, np.int64), np.array(stop, np.int64)
    member = np.concatenate([np.arange(a, b) for a, b in zip(first, stop, strict=True)] or [[]])
    pair = np.repeat(np.arange(len(firsts)), stops - firsts)
    is_last = member == (stops - 1)[pair] if len(pair) else member.astype(bool)
    member = member.astype(np.int64)
    teacher = {
        "alm": {"index": stops - 1, "token_index": member, "token_pair": pair},
        "uld": {
            "index": stops - 1,
            "earlier_index": member[~is_last],
            "earlier_pair": pair[~is_last],
        },
        "tail_kl": {"index": np.arange(len(example))},
    }
    return teacher, example


@given(batches(), st.integers(1, 12))
def test_pieces_are_a_partition_that_keeps_groups_whole(
    batch: tuple[dict[str, dict[str, np.ndarray]], np.ndarray], size: int
) -> None:
    teacher, example = batch
    pieces = cut(teacher, example, size)
    groups = [
        teacher["alm"]["token_index"][teacher["alm"]["token_pair"] == i].tolist()
        for i in range(len(teacher["alm"]["index"]))
    ]
    if pieces is None:
        assert not len(example) or max(map(len, groups)) > size
        return
    assert [p.start for p in pieces.each] == [0, *(p.stop for p in pieces.each[:-1])]
    assert pieces.each[-1].stop == len(example)
    assert all(0 < p.stop - p.start <= size for p in pieces.each)
    arrays = {n: {k: torch.from_numpy(a) for k, a in each.items()} for n, each in teacher.items()}
    found: list[list[int]] = []
    for piece in pieces.each:
        part = piece_of(arrays, piece)["alm"]
        for i, last in enumerate(part["index"].tolist()):
            members = part["token_index"][part["token_pair"] == i].tolist()
            assert members[-1] == last
            found.append([m + piece.start for m in members])
        earlier = piece_of(arrays, piece)["uld"]
        assert (earlier["earlier_index"] < earlier["index"][earlier["earlier_pair"]]).all()
    assert found == groups


def test_a_piece_is_as_large_as_it_may_be() -> None:
    teacher = {"tail_kl": {"index": np.arange(10)}}
    pieces = cut(teacher, np.zeros(10, np.int64), 4)
    assert pieces is not None
    assert [(p.start, p.stop) for p in pieces.each] == [(0, 4), (4, 8), (8, 10)]


def test_a_ranking_keeps_sequences_whole_with_their_unpaired_labels() -> None:
    """Its columns are chosen by all labels of a sequence; only the first two of each are paired."""
    example = np.repeat([0, 1, 2], 4)
    arrays = {"index": np.array([0, 4, 8]), "token_index": np.array([0, 1, 4, 5, 8, 9])}
    arrays["token_pair"] = np.repeat([0, 1, 2], 2)
    pieces = cut({"multilevel_ot": arrays}, example, 9)
    assert pieces is not None
    assert [(p.start, p.stop) for p in pieces.each] == [(0, 8), (8, 12)]
    assert cut({"multilevel_ot": arrays}, example, 3) is None


# ---- the gradient in the forward ----


class Bare(nn.Module):
    """Nothing but an output embedding, so that every product counted is the head's."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.config = tiny.llama(8).config

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, hidden: Tensor) -> Any:
        return (self.lm_head(hidden),)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (aten.mm, aten.addmm, aten.addmm_)
        return func(*args, **(kwargs or {}))


def test_the_forward_way_saves_a_quarter_of_the_arithmetic() -> None:
    """A chunk's logits, and two products for the gradient; recomputing makes the logits twice."""
    torch.manual_seed(0)
    model, hidden = Bare(16, 300), torch.randn(1, 64, 16, requires_grad=True)
    query, at = HeadQuery(torch.arange(64), top_k=3), torch.arange(64)
    head = head_module.StudentHead(model, chunk_tokens=16)
    head(model, {"hidden": hidden}, at, query)  # the first call checks the head

    def objective(answer: HeadAnswer, _start: int, _stop: int) -> Tensor:
        assert answer.top_logprobs_NK is not None
        return answer.label_logprob_N.sum() + answer.top_logprobs_NK.exp().sum()

    counts, grads = [], []
    for ranges in (None, [(a, a + 16) for a in range(0, 64, 16)]):
        hidden.grad = model.lm_head.weight.grad = None
        with Products() as products:
            head.loss(model, {"hidden": hidden}, at, query, objective, ranges).backward()
        counts.append(products.count - 1)  # one of no rows, for the model to go on with
        grads.append((hidden.grad, model.lm_head.weight.grad))
    assert counts == [4 * 4, 4 * 3]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_frozen_output_embedding_costs_no_product() -> None:
    model, hidden = Bare(16, 300), torch.randn(1, 8, 16, requires_grad=True)
    query, at = HeadQuery(torch.arange(8)), torch.arange(8)
    (want,) = torch.autograd.grad(model(hidden)[0][0].log_softmax(-1).diagonal().sum(), hidden)
    model.lm_head.weight.requires_grad_(False)
    head = head_module.StudentHead(model, chunk_tokens=4)
    head(model, {"hidden": hidden}, at, query)

    def objective(answer: HeadAnswer, _start: int, _stop: int) -> Tensor:
        return answer.label_logprob_N.sum()

    with Products() as products:
        head.loss(model, {"hidden": hidden}, at, query, objective, [(0, 4), (4, 8)]).backward()
    assert products.count - 1 == 2 * 2
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, want, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_used_up_is_not_used_twice() -> None:
    linear = nn.Linear(4, 9)
    nothing_after = AfterEmbedding(None, None, None, None)
    hidden = torch.randn(3, 4, requires_grad=True)
    loss = in_the_forward(
        LinearHead(linear, nothing_after),
        hidden,
        HeadQuery(torch.arange(3)),
        [(0, 3)],
        lambda answer, _start, _stop: -answer.label_logprob_N.sum(),
    )
    want = torch.nn.functional.cross_entropy(linear(hidden), torch.arange(3), reduction="sum")
    want_grads = torch.autograd.grad(want, [hidden, linear.weight, linear.bias])
    (2 * loss).backward(retain_graph=True)
    found = (hidden.grad, linear.weight.grad, linear.bias.grad)
    for got, grad in zip(found, want_grads, strict=True):
        torch.testing.assert_close(got, 2 * grad)
    with pytest.raises(RuntimeError, match="used up; run the forward again"):
        loss.backward()


def test_float16_waits_for_the_loss_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is 1e-7 in the forward is 0 in float16; scaled by 65,536 in the backward it is not."""
    monkeypatch.setattr(head_module, "in_the_forward", None)  # calling it would be an error
    model = Bare(4, 9).half()
    hidden = torch.randn(1, 6, 4).half().requires_grad_()
    head = head_module.StudentHead(model, chunk_tokens=2)

    def objective(answer: HeadAnswer, _start: int, _stop: int) -> Tensor:
        return answer.label_logprob_N.sum() * 1e-7

    query, at = HeadQuery(torch.arange(6)), torch.arange(6)
    ranges = [(0, 2), (2, 4), (4, 6)]
    loss = head.loss(model, {"hidden": hidden}, at, query, objective, ranges)
    (loss * 65536).backward()
    assert model.lm_head.weight.grad is not None
    assert model.lm_head.weight.grad.abs().max() > 1e-4
