"""`distill train` cannot end with exit status 0 and an untrained student."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from distill.training.config import CachedTeacherConfig
from distill.training.untrained import marks_of
from logitstore.errors import InputError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import estranged, ragged_rows, trainer_of


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    teacher = tiny.llama(300, seed=7)
    return FakeStore.from_teacher(teacher, tiny.byte_bpe(), ragged_rows(), tmp_path / "tokenizer")


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny.llama(300)


def test_a_store_of_which_nothing_can_be_used_is_refused_before_anything_is_written(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    lost = [t._replace(status="template_changed_text") for t in store.texts]
    broken = replace(store, texts=lost)
    for most in (0.05, 1):
        with pytest.raises(InputError, match=r"this student cannot use 8 of 8 sequences"):
            trainer_of(model, broken, tmp_path / "out", max_lost=most)
    with pytest.raises(InputError, match=r"^--eval_store fake-store: this student cannot use 8"):
        trainer_of(model, store, tmp_path / "out", eval_store=broken)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_without_a_label_are_no_training(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path, weight_decay: float
) -> None:
    """Weight decay changes the weights, and teaches nothing."""
    lost = [t._replace(status="template_changed_text") for t in store.texts[:2]]
    how = {"max_lost": 1, "max_steps": 2, "per_device_train_batch_size": 1}
    how |= {"optim": "adamw_torch", "weight_decay": weight_decay}
    trainer = trainer_of(model, replace(store, texts=[*lost, *store.texts[2:]]), tmp_path, **how)
    with pytest.raises(InputError, match=r"the student is as it was: the 2 steps had no label"):
        trainer.train()


def test_a_loss_of_0_throughout_is_no_training(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    """No pair covers a label, and nothing stands in for it."""
    store = estranged(store)
    alone = replace(store, records=store.records[3:4] * 2, texts=store.texts[3:4] * 2)
    how: dict[str, Any] = {"loss": "uld", "ce_weight": 0.0, "uncovered": "none", "max_steps": 2}
    trainer = trainer_of(
        model, alone, tmp_path, optim="adamw_torch", weight_decay=0.1, no_self_test=True, **how
    )
    with pytest.raises(InputError, match=r"the loss was 0 in each of the 2 steps") as refused:
        trainer.train()
    assert refused.value.kind == "untrained"


def test_updates_that_are_lost_in_rounding_are_no_training(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    trainer = trainer_of(model.to(torch.bfloat16), store, tmp_path, learning_rate=1e-12)
    with pytest.raises(InputError, match=r"no weight changed in 3 steps: updates were 0, or lost"):
        trainer.train()


def test_a_schedule_that_stays_at_0_is_no_training(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    how = {"max_steps": 1, "lr_scheduler_type": "linear", "warmup_steps": 5}
    with pytest.raises(InputError, match=r"fewer --warmup_steps"):
        trainer_of(model, store, tmp_path, **how).train()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"learning_rate": 0.0}, r"--learning_rate is 0, which trains nothing"),
        ({"num_train_epochs": 0}, r"--num_train_epochs is 0, which leaves no step"),
        ({"max_lost": 1.5}, r"--max_lost is 1\.5, expected 0 to 1"),
        ({"max_lost": float("nan")}, r"--max_lost is nan"),
    ],
)
def test_flags_that_leave_nothing_to_train_are_refused(
    tmp_path: Path, flags: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        CachedTeacherConfig(output_dir=str(tmp_path), store="s", use_cpu=True, **flags)


def test_a_single_changed_bit_is_a_change() -> None:
    model = tiny.llama(300)
    for kind in (torch.float32, torch.bfloat16):
        model = model.to(kind)
        before = marks_of(model)
        weight = model.lm_head.weight.data
        weight[3, 4] = torch.nextafter(weight[3, 4], weight[3, 4] + 1)
        assert marks_of(model) != before


def test_what_is_frozen_does_not_count() -> None:
    model = tiny.llama(300)
    for each in model.parameters():
        each.requires_grad_(False)
    assert marks_of(model) == []
