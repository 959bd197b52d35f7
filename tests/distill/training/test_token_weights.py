"""Weights of tokens, as DWA-KD has them: by definition, however a batch is cut, and live."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.training.loss_terms import unpacked
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError, MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from tests.distill.training.test_uncovered import CUTS, assert_same, gradient
from tests.kit.students import ragged_rows, trainer_of

WIDTH = len(tiny.byte_bpe())
KINDS = ("dwa_teacher", "dwa_student")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of a teacher of another tokenizer."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), folder, top_k=16)


@pytest.fixture
def student() -> PreTrainedModel:
    return tiny.llama(WIDTH).double()


def values(trainer: CachedTeacherTrainer, loss: str) -> tuple[dict[str, Any], Tensor]:
    """A batch of all rows, and the value of each pair of a loss."""
    batch = trainer.data_collator([trainer.data[i] for i in range(8)])
    with torch.no_grad():
        _, terms = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    return batch, terms[loss].values_P


@torch.no_grad()
def by_definition(
    trainer: CachedTeacherTrainer, batch: dict[str, Any], loss: str, kind: str
) -> Tensor:
    """Row by row from the store's records and the student's own logits, in plain loops."""
    arrays = unpacked(batch)["teacher"][loss]
    pair, found = 0, []
    ids_T = batch["input_ids"].long()
    logits = trainer.model(ids_T, attention_mask=batch["attention_mask"].long()).logits
    rows = logits.flatten(0, 1)[batch["rows"].long()].double().log_softmax(-1)
    for i in range(8):
        asked = trainer.data.asked(i, loss)
        assert asked is not None
        raw = []
        for _, t_stop, _, _ in asked.pairs.table.tolist():
            if kind == "dwa_teacher":
                entropy = float(asked.records.entropy[t_stop - 1])
                raw.append(1 - entropy / np.log(trainer.store.spec.vocab_size))
            else:
                p_V = rows[arrays["index"][pair]]
                own = -float((p_V.exp() * p_V).sum())
                if "entry_logmass" in arrays:
                    peak = float(arrays["entry_logmass"][pair].max().exp())
                else:
                    first = int(asked.records.entry_count[: t_stop - 1].sum())
                    peak = float(np.exp(asked.records.entry_logprobs[first]))
                raw.append(own * peak)
            pair += 1
        found += [each * len(raw) / sum(raw) for each in raw]
    return torch.tensor(found).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["mapped_kl", "uld"])
def test_the_value_of_each_pair_is_multiplied_with_its_weight(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, loss: str, kind: str
) -> None:
    how = {"loss": f"{loss}:1", "uncovered": "none"}
    _, plain = values(trainer_of(student, store, tmp_path, **how), loss)
    trainer = trainer_of(student, store, tmp_path, token_weights=kind, **how)
    batch, found = values(trainer, loss)
    weights = by_definition(trainer, batch, loss, kind)
    torch.testing.assert_close(found.double(), weights * plain.double(), rtol=1e-5, atol=1e-7)
    assert float(weights.sum()) == pytest.approx(len(plain))
    assert float(weights.std()) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_weights_do_not_depend_on_how_a_batch_is_cut(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, kind: str
) -> None:
    trainer = trainer_of(student, store, tmp_path, loss="uld,mapped_kl", token_weights=kind)
    want = gradient(trainer, *CUTS["whole"])
    for cut in ("micro-batches", "pieces", "pieces of micro-batches"):
        assert_same(gradient(trainer, *CUTS[cut]), want)
    plain = gradient(trainer_of(student, store, tmp_path, loss="uld,mapped_kl"), *CUTS["whole"])
    assert (want - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_store_it_is_the_weighted_divergence_of_two_live_models(
    tmp_path: Path, kind: str
) -> None:
    """All of the vocabulary stored. The teacher itself loses nothing; shifted by one it does."""
    reader, found = tiny.byte_bpe(), []
    teacher, student = tiny.llama(WIDTH, seed=7), tiny.llama(WIDTH)
    for learner, shifted in ((student, False), (teacher, False), (teacher, True)):
        store = FakeStore.from_teacher(
            teacher, reader, ragged_rows(), tmp_path / str(shifted), top_k=WIDTH, shifted=shifted
        )
        how = {"loss": "tail_kl", "token_weights": kind, "no_self_test": True}
        trainer = trainer_of(learner, store, tmp_path, uncovered="none", **how)
        found.append(float(values(trainer, "tail_kl")[1].mean()))
    want = []
    for segments in ragged_rows():
        tokens = ByteTokenizer(reader).encode(segments)
        at = np.flatnonzero(tokens.has_record) - 1
        p, q = (dense_logprobs(model, tokens.token_ids)[at] for model in (student, teacher))
        kl = (q.exp() * (q - p)).sum(-1)
        weight = 1 + (q.exp() * q).sum(-1) / np.log(WIDTH)
        if kind == "dwa_student":
            weight = -(p.exp() * p).sum(-1) * q.exp().max(-1).values
        want.append(weight * len(kl) / weight.sum() * kl)
    assert found[0] == pytest.approx(float(torch.cat(want).mean()), rel=2e-3)
    assert abs(found[1]) < 1e-5 < 1e-2 < found[2]


def test_held_out_text_is_not_weighed(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    plain, weighed = (
        trainer_of(student, store, tmp_path, eval_store=store, **how).evaluate()
        for how in ({}, {"token_weights": "dwa_student"})
    )
    assert plain["eval_uld_loss"] == weighed["eval_uld_loss"]


def test_a_teacher_that_is_sure_of_nothing_weighs_all_tokens_alike(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    flat = FakeStore(**vars(store))
    top = float(np.log(store.spec.vocab_size))
    flat.records = [type(r)(**{name: getattr(r, name) for name in r.__slots__}
                              | {"entropy": np.full(len(r), top, np.float32)})
                    for r in store.records]  # fmt: skip
    how = {"loss": "uld", "uncovered": "none"}
    _, plain = values(trainer_of(student, flat, tmp_path, **how), "uld")
    _, weighed = values(
        trainer_of(student, flat, tmp_path, token_weights="dwa_teacher", **how), "uld"
    )
    torch.testing.assert_close(weighed, plain)


def lacking(store: FakeStore, **spec: Any) -> FakeStore:
    made = type(store.spec)(**vars(store.spec) | spec)
    return FakeStore(**vars(store) | {"spec": made})


def test_what_cannot_be_weighed_is_refused(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    blind, bare = lacking(store, missing=("entropy",)), lacking(store, top_k=0)
    with pytest.raises(MismatchError, match="without the entropy of every token, of which --token"):
        trainer_of(student, blind, tmp_path, token_weights="dwa_teacher")
    with pytest.raises(MismatchError, match="captured with --top-k 0, so the teacher's largest"):
        trainer_of(student, bare, tmp_path, loss="alm", token_weights="dwa_student")
    with pytest.raises(InputError, match="--loss ce compares nothing"):
        trainer_of(student, store, tmp_path, loss="ce", token_weights="dwa_teacher")
    with pytest.raises(InputError, match="by_hand: not known"):
        trainer_of(student, store, tmp_path, loss="alm", token_weights="by_hand")
    whole = FakeStore.from_teacher(
        tiny.llama(WIDTH, seed=7), tiny.byte_bpe(), ragged_rows(), tmp_path / "t", logit_std=True
    )
    with pytest.raises(InputError, match="multilevel_ot has one value for a whole sequence"):
        trainer_of(student, whole, tmp_path, loss="multilevel_ot", token_weights="dwa_teacher")
