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
from logitstore.records import NO_LABEL
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
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


EDITS: dict[str, tuple[Callable[[Batch], Tensor], str]] = {
    "shift by one": (lambda batch: batch["input_ids"].roll(1, 1), "1 before"),
    "shift by two": (lambda batch: batch["input_ids"].roll(2, 1), "2 before"),
    "another row": (lambda batch: batch["input_ids"].roll(-1, 0), "of another sequence"),
    "another row back": (lambda batch: batch["input_ids"].roll(1, 0), "of another sequence"),
}


@pytest.mark.parametrize(
    ("broken", "rows", "loss"),
    [
        ("shift by one", 1, "tail_kl"),
        ("shift by two", 1, "uld"),
        ("shift by one", 3, "ce"),
        ("another row", 2, "tail_kl"),
        ("another row", 3, "tail_kl"),
        ("another row back", 3, "tail_kl"),
        ("shift by one", 8, "tail_kl"),
        ("shift by two", 8, "tail_kl"),
        ("another row", 8, "tail_kl"),
    ],
)
def test_labels_in_a_wrong_place_stop_the_run_before_a_weight_is_touched(
    store: FakeStore, tmp_path: Path, broken: str, rows: int, loss: str
) -> None:
    """However few sequences a batch has: one is usual for a large student."""
    edit, which = EDITS[broken]
    how: dict[str, Any] = {"per_device_train_batch_size": rows, "loss": loss}
    trainer = run(store, tmp_path, **how)
    breaking(trainer, edit)
    before = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    with pytest.raises(
        InputError,
        match=rf"^step 1: the logits {which} predict the labels .* better than .* --no_self_test",
    ) as stopped:
        trainer.train()
    assert stopped.value.kind == "self-test"
    torch.testing.assert_close(trainer.model.state_dict(), before)
    again = run(store, tmp_path, **how, no_self_test=True)
    breaking(again, edit)
    again.train()
    assert again.self_test == {}


#: And one of a single tokenizer.
OF_STATES = ("tail_kl", "dskd", "cot2align")


@pytest.mark.parametrize("loss", [n for n in all_losses() if n not in OF_STATES])
def test_an_honest_run_of_any_loss_is_told_to_fit(
    loss: str, store: FakeStore, tmp_path: Path
) -> None:
    """`sampled_kl` reads draws, others standard deviations, beside the entries.

    Some read hidden states, which no store in memory has: test_hidden_command.py trains them.
    """
    more: dict[str, Any] = {"sampled_kl": {"draws": 8}}
    more |= {name: {"logit_std": True} for name in ("multilevel_ot", "infifusion", "clkd")}
    if loss in more:
        folder = tmp_path / "tokenizer"
        made = (knowing(), tiny.byte_bpe(), learnt.rows(), folder)
        store = FakeStore.from_teacher(*made, rounded=True, **more[loss])
    trainer = run(store, tmp_path / "out", loss=loss)
    trainer.train()
    found = {name: each["outcome"] for name, each in trainer.self_test.items()}
    assert found == {"records": "fits", "student": "fits"}


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_a_student_that_knows_its_labels_is_sure_of_them(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: int
) -> None:
    model = knowing()
    model.name_or_path = "hub/student"  # only one that was trained is doubted
    trainer = run(store, tmp_path, model, per_device_train_batch_size=rows)
    trainer.train()
    found = trainer.self_test["student"]
    assert (found["outcome"], found["sequences"]) == ("fits", 8)
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
    assert trainer.self_test["student"]["outcome"] == "cannot tell"
    if loss == "ce":
        assert "records" not in trainer.self_test  # they are not trained on
    else:
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
    trainer = run(store, tmp_path, model, per_device_train_batch_size=3)
    trainer.train()
    assert trainer.self_test["student"]["outcome"] == "cannot tell"
    assert "the labels of 8 sequences cost it" in caplog.text
    assert "Its tokenizer may be another model's. --no_self_test silences this." in caplog.text


def test_of_too_few_sequences_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two sequences tell nothing from chance, and one text twice nothing from itself."""
    for rows in (learnt.rows()[:2], learnt.rows()[:1] * 8):
        store = FakeStore.from_teacher(knowing(), tiny.byte_bpe(), rows, tmp_path / "tokenizer")
        model = knowing()
        model.name_or_path = "hub/student"
        trainer = run(store, tmp_path, model)
        trainer.train()
        assert trainer.self_test["student"]["outcome"] == "cannot tell"
        assert "self_test" not in caplog.text
