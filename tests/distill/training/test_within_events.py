"""A loss that compares events of several tokens, and what it then leaves open of each label.

Without the teacher's word on which token of an event it is, the text's own is that: so a teacher
that is as sure as the text teaches just what cross-entropy does, however its tokens are grouped.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.data.collator import Collator
from distill.losses.mapped_kl import mapped_kl
from distill.losses.maps import OURS, PUBLISHED
from distill.training.batch_query import query_of
from distill.training.loss_terms import unpacked
from distill.training.trainer import CachedTeacherTrainer
from logitstore.records import TokenRecords
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.distill.training.test_uncovered import (
    CE_WEIGHT,
    CUTS,
    WEIGHT,
    assert_same,
    gradient,
)
from tests.kit.students import rows_with_a_stranger, trainer_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of a teacher of another tokenizer."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(teacher, tokenizer, rows_with_a_stranger(), folder)


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of a teacher with the student's tokenizer."""
    tokenizer = tiny.byte_bpe()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("own")
    return FakeStore.from_teacher(teacher, tokenizer, rows_with_a_stranger(), folder)


@pytest.fixture
def student() -> PreTrainedModel:
    return tiny.llama(len(tiny.byte_bpe())).double()


def as_sure_as_the_text(records: TokenRecords) -> TokenRecords:
    """The token that came, with all of the probability."""
    n = len(records)
    return replace(
        records,
        token_logprob=np.zeros(n, np.float32),
        entry_count=np.ones(n, np.int64),
        entry_ids=records.token_ids.astype(np.uint32),
        entry_logprobs=np.zeros(n, np.float32),
        tail_logmass=np.full(n, -np.inf, np.float32),
    )


def without_entries(records: TokenRecords) -> TokenRecords:
    """Nothing is known: all of the probability is in the tail."""
    n, none = len(records), np.zeros(0, np.float32)
    return replace(
        records,
        entry_count=np.zeros(n, np.int64),
        entry_ids=none.astype(np.uint32),
        entry_logprobs=none,
        tail_logmass=np.zeros(n, np.float32),
    )


def changed(store: FakeStore, change: Any) -> FakeStore:
    return replace(store, records=[change(records) for records in store.records])


def assert_cross_entropy(
    student: PreTrainedModel, store: FakeStore, out: Path, cut: str, loss: str, **how: Any
) -> None:
    """The gradient of the loss and of cross-entropy is that of so much more cross-entropy."""
    trainer = trainer_of(student, store, out, loss=f"{loss}:{WEIGHT}", ce_weight=CE_WEIGHT, **how)
    plain = trainer_of(student, store, out, loss="ce", ce_weight=CE_WEIGHT + WEIGHT)
    assert_same(gradient(trainer, *CUTS[cut]), gradient(plain, [8]))


@pytest.mark.filterwarnings("ignore:wrong labels")
@pytest.mark.parametrize("between", ["off", "on"])
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("cut", ["whole", "pieces of micro-batches"])
def test_a_teacher_that_is_as_sure_as_the_text_is_the_text(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, cut: str, kind: str, between: str
) -> None:
    """Fault: where the label was one of several tokens of its event, it had half its weight."""
    sure = changed(store, as_sure_as_the_text)
    how = {"map": kind, "between": between}
    assert_cross_entropy(student, sure, tmp_path, cut, "mapped_kl", **how)


@pytest.mark.parametrize("loss", ["mapped_kl", "tail_kl"])
@pytest.mark.parametrize("change", [as_sure_as_the_text, without_entries])
def test_a_teacher_that_says_nothing_is_the_text_too(
    own_store: FakeStore, student: PreTrainedModel, tmp_path: Path, loss: str, change: Any
) -> None:
    """Fault: a label that is no entry had no pull of its own within the rest."""
    assert_cross_entropy(student, changed(own_store, change), tmp_path, "whole", loss)


@pytest.mark.filterwarnings("ignore:wrong labels")
@pytest.mark.parametrize("kind", [*OURS, *PUBLISHED])
def test_what_is_left_open_is_the_label_given_its_event(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, kind: str
) -> None:
    """Each position from the definition, in float64, with every map."""
    trainer = trainer_of(student, store, tmp_path, loss="mapped_kl:1", map=kind)
    batch = Collator(0, ["mapped_kl"])([trainer.data[i] for i in range(8)])
    found, want = values_of(trainer, batch), by_definition(trainer, batch)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
    without = trainer_of(
        student, store, tmp_path / "none", loss="mapped_kl:1", map=kind, uncovered="none"
    )
    bare = values_of(without, batch)
    index = unpacked(batch)["teacher"]["mapped_kl"]["index"]
    opened = found[index] - bare
    assert (opened > -1e-6).all()
    assert (opened > 0.1).any()  # of some labels something is left open, by every map


def values_of(trainer: CachedTeacherTrainer, batch: Any) -> Tensor:
    with torch.no_grad():
        _, terms = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    values: Tensor = terms["mapped_kl"].values_P
    return values


def by_definition(trainer: CachedTeacherTrainer, batch: Any) -> Tensor:
    """sum_e t(e) log(t(e) / p(e)) - log p(y) + sum_e share(y, e) log p(e), or -log p(y)."""
    unpacked_batch = unpacked(batch)
    arrays = unpacked_batch["teacher"]["mapped_kl"]
    labels = query_of(unpacked_batch, trainer.data.options).labels_N
    made = trainer.data.mappings["mapped_kl"].made  # type: ignore[union-attr]
    with torch.no_grad():
        logits = trainer.model(batch["input_ids"].long(), batch["attention_mask"]).logits
    p_NV = logits.flatten(0, 1)[batch["rows"].long()].softmax(-1)
    values = -p_NV.gather(1, labels[:, None]).squeeze(1).log()
    width = p_NV.shape[1]
    of_token = np.arange(width)[None] if made.of_token is None else np.atleast_2d(made.of_token)
    share = np.ones((1, width)) if made.divided is None else made.divided
    for i, label in enumerate(arrays["index"].tolist()):
        target = {
            int(e): float(t)
            for e, t in zip(arrays["entry_ids"][i], arrays["entry_logmass"][i].exp(), strict=True)
            if e >= 0
        }
        p_of = dict.fromkeys(target, 0.0)
        rest = 0.0
        for token, p in enumerate(p_NV[label].tolist()):
            for row in range(len(share)):
                event, part = int(of_token[row, token]), p * float(share[row, token])
                if event in p_of:
                    p_of[event] += part
                else:
                    rest += part
        t_rest = float(arrays["rest_logmass"][i].exp())
        value = t_rest * np.log(t_rest / rest) if t_rest else 0.0
        value += sum(t * np.log(t / p_of[e]) for e, t in target.items())
        y = int(labels[label])
        for row in range(len(share)):
            if share[row, y]:
                value += float(share[row, y]) * np.log(p_of.get(int(of_token[row, y]), rest))
        values[label] += value
    return values


def test_what_the_text_adds_is_on_average_what_events_leave_out() -> None:
    """The claim behind it: over texts of the teacher's, the gradient is that of the full KL."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(7, generator=generator, dtype=torch.float64).softmax(0)
    logits = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    event_of = torch.tensor([0, 0, 1, 2, 2, 2, 3])  # of which 3 is not listed: the rest
    t = torch.zeros(4, dtype=torch.float64).index_add(0, event_of, q)
    log_p = logits.log_softmax(0)
    log_e = torch.stack([log_p[event_of == e].logsumexp(0) for e in range(4)])
    kl = mapped_kl(log_e[None, :3], log_e[3:], t[None, :3].log(), t[3:].log()).sum()
    open_y = log_e[event_of] - log_p
    (found,) = torch.autograd.grad(kl + (q * open_y).sum(), logits, retain_graph=True)
    (want,) = torch.autograd.grad((q * (q.log() - log_p)).sum(), logits, retain_graph=True)
    (without,) = torch.autograd.grad(kl, logits)
    torch.testing.assert_close(found, want)
    assert (without - want).abs().max() > 0.02
