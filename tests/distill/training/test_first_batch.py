"""Before the first step, a student that has learnt shows whether its labels are where they belong.

A new student knows nothing of them: then nothing can be told, and nothing is said.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from distill.losses import all_losses
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.token_ids import NO_LABEL
from tests.kit import learnt
from tests.kit.students import t5, trainer_of

Batch = dict[str, Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    folder = tmp_path_factory.mktemp("learnt") / "tokenizer"
    return FakeStore.from_teacher(knowing(), tiny.byte_bpe(), learnt.rows(), folder)


def knowing() -> LlamaForCausalLM:
    return learnt.model_of(tiny.byte_bpe(), learnt.rows())


def run(store: FakeStore, out: Path, model: Any = None, **how: Any) -> CachedTeacherTrainer:
    how = {"max_steps": 1, "learning_rate": 1e-3, "loss": "tail_kl"} | how
    return trainer_of(model or knowing(), store, out, **how)


def breaking(trainer: CachedTeacherTrainer, edit: Callable[[Batch], Tensor]) -> None:
    """Give the labels of a batch other values."""
    collate = trainer.data_collator

    def broken(examples: Any) -> Batch:
        batch = collate(examples)
        is_label = batch["labels"] != NO_LABEL
        return {**batch, "labels": torch.where(is_label, edit(batch), NO_LABEL).int()}

    trainer.data_collator = broken


@pytest.mark.parametrize(
    ("edit", "which"),
    [
        (lambda batch: batch["input_ids"].roll(1, 1), "1 before"),
        (lambda batch: batch["input_ids"].roll(2, 1), "2 before"),
        (lambda batch: batch["input_ids"].roll(-1, 0), "of another sequence"),
    ],
    ids=["shift by one", "shift by two", "another row"],
)
def test_labels_in_a_wrong_place_stop_the_run_before_a_weight_is_touched(
    store: FakeStore, tmp_path: Path, edit: Callable[[Batch], Tensor], which: str
) -> None:
    trainer = run(store, tmp_path)
    breaking(trainer, edit)
    before = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    with pytest.raises(
        InputError,
        match=rf"^step 1: the logits {which} predict the labels .* better than .* --no_self_test",
    ) as stopped:
        trainer.train()
    assert stopped.value.kind == "self-test"
    torch.testing.assert_close(trainer.model.state_dict(), before)
    again = run(store, tmp_path, no_self_test=True)
    breaking(again, edit)
    again.train()
    assert again.self_test == {}


@pytest.mark.parametrize("loss", [name for name in all_losses() if name != "tail_kl"])
def test_an_honest_run_of_any_loss_is_told_to_fit(
    loss: str, store: FakeStore, tmp_path: Path
) -> None:
    """`sampled_kl` reads draws, and `multilevel_ot` standard deviations, beside the entries."""
    more: dict[str, Any] = {"sampled_kl": {"draws": 8}, "multilevel_ot": {"logit_std": True}}
    if loss in more:
        folder = tmp_path / "tokenizer"
        made = (knowing(), tiny.byte_bpe(), learnt.rows(), folder)
        store = FakeStore.from_teacher(*made, rounded=True, **more[loss])
    trainer = run(store, tmp_path / "out", loss=loss)
    trainer.train()
    found = {name: each["outcome"] for name, each in trainer.self_test.items()}
    assert found == {"records": "fits", "student": "fits"}


def test_a_student_that_knows_its_labels_is_sure_of_them(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(store, tmp_path)
    trainer.train()
    found = trainer.self_test["student"]
    assert found["outcome"] == "fits"
    assert found["own"] + 2 < found["other"]
    assert trainer.self_test["records"]["outcome"] == "fits"
    assert "self_test" not in caplog.text


@pytest.mark.parametrize("loss", ["uld", "uld:1,mapped_kl:1", "alm", "tail_kl", "ce"])
@pytest.mark.parametrize("kind", ["new", "tied", "t5"])
def test_of_a_new_student_nothing_can_be_told_and_nothing_is_said(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, loss: str
) -> None:
    """One with tied embeddings repeats what it has just read, and is no less honest."""
    made = {
        "new": lambda: tiny.llama(300, initializer_range=0.02),
        "tied": lambda: tiny.llama(300, initializer_range=0.2, tie_word_embeddings=True),
        "t5": t5,
    }
    trainer = run(store, tmp_path, made[kind](), loss=loss)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    if loss == "ce":
        assert trainer.self_test == {}
    else:
        assert trainer.self_test["student"]["outcome"] == "cannot tell"
        assert trainer.self_test["records"]["outcome"] == "fits"
    assert "self_test" not in caplog.text


@pytest.mark.parametrize("how", [{"pairing": "position"}, {"packing": True}])
def test_no_way_to_train_an_honest_pair_is_stopped(
    store: FakeStore, tmp_path: Path, how: dict[str, Any]
) -> None:
    trainer = run(store, tmp_path, loss="uld", **how)
    trainer.train()
    assert trainer.self_test["student"]["outcome"] == "fits"


def test_the_test_leaves_the_run_as_it_would_have_been(store: FakeStore, tmp_path: Path) -> None:
    """Dropout draws from the generator: had the test drawn from it, all would come out another."""
    losses = []
    for no_self_test in (False, True):
        model = knowing()
        model.config.attention_dropout = 0.3
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        trainer = run(store, tmp_path, model, max_steps=2, no_self_test=no_self_test)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def test_a_sure_student_that_does_not_know_its_labels_is_doubted(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one whose tokenizer is another model's."""
    model = knowing()
    model.name_or_path = "hub/student"  # its weights come from somewhere
    with torch.no_grad():
        order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
        model.lm_head.weight[:] = model.lm_head.weight[order]
    trainer = run(store, tmp_path, model)
    trainer.train()
    assert trainer.self_test["student"]["outcome"] == "cannot tell"
    assert "Its tokenizer may be another model's. --no_self_test silences this." in caplog.text
