"""A mixture of experts keeps the loss that its own forward would add."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, SwitchTransformersConfig

from distill.training.router_loss import router_weight
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import estranged, logged, ragged_rows, trainer_of


def mixtral(weight: float, *, is_on: bool = True) -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=len(tiny.byte_bpe()), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        output_router_logits=is_on, router_aux_loss_coef=weight,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MixtralForCausalLM(config)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.byte_bpe()
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(tiny.llama(len(tokenizer)), tokenizer, ragged_rows(), folder)


def trained(
    model: MixtralForCausalLM, store: FakeStore, out: Path, **more: Any
) -> CachedTeacherTrainer:
    trainer = trainer_of(model, store, out, **({"loss": "ce", "max_steps": 1} | more))
    trainer.train()
    return trainer


def whole_batch(store: FakeStore) -> tuple[Tensor, Tensor, Tensor]:
    """What the collator gives the model, made by hand: ids, mask and labels, padded."""
    tokenizer = tiny.byte_bpe()
    with tempfile.TemporaryDirectory() as out:
        data = trainer_of(mixtral(0.0), store, Path(out), loss="ce").data
    rows = [data[i] for i in range(len(data))]
    width = max(len(row.token_ids) for row in rows)
    ids = torch.full((len(rows), width), int(tokenizer.eos_token_id))
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        n = len(row.token_ids)
        ids[i, :n], mask[i, :n] = torch.tensor(row.token_ids, dtype=torch.long), 1
        labels[i, :n][torch.tensor(row.is_label)] = ids[i, :n][torch.tensor(row.is_label)]
    return ids, mask, labels


def test_the_loss_of_a_step_and_its_gradient_are_the_models_own(
    store: FakeStore, tmp_path: Path
) -> None:
    """The referee is the model's forward with labels, which adds both losses itself."""
    ids, mask, labels = whole_batch(store)
    referee, student = mixtral(10.0), mixtral(10.0)
    found = referee(input_ids=ids, attention_mask=mask, labels=labels)
    found.loss.backward()
    before = [p.detach().clone() for p in student.parameters()]
    trainer = trained(student, store, tmp_path, per_device_train_batch_size=len(ids))
    entry = logged(trainer)[0]
    assert entry["loss"] == pytest.approx(found.loss.item(), rel=1e-4)
    assert entry["aux_loss"] == pytest.approx(10 * found.aux_loss.item(), rel=1e-4)
    for was, now, other in zip(before, student.parameters(), referee.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close((was - now) / 1e-2, other.grad, rtol=1e-3, atol=2e-4)


def test_a_coefficient_changes_the_student_and_none_is_no_entry(
    store: FakeStore, tmp_path: Path
) -> None:
    runs = [
        trained(mixtral(weight, is_on=is_on), store, tmp_path, max_steps=3, loss="uld")
        for weight, is_on in ((10.0, True), (0.0, True), (10.0, False))
    ]
    flat = [torch.cat([p.detach().flatten() for p in run.model.parameters()]) for run in runs]
    assert not torch.equal(flat[0], flat[1])
    assert torch.equal(flat[1], flat[2])
    assert ["aux_loss" in logged(run)[0] for run in runs] == [True, False, False]


def test_equal_micro_batches_count_once_together(store: FakeStore, tmp_path: Path) -> None:
    """Four copies of a row, in one batch or in four: the mean stays the mean."""
    twins = FakeStore(
        [store.records[0]] * 4, [store.texts[0]] * 4, store.spec, store.tokenizer_path
    )
    found = []
    for size in (4, 1):
        trainer = trained(
            mixtral(10.0), twins, tmp_path,
            per_device_train_batch_size=size, gradient_accumulation_steps=4 // size,
        )  # fmt: skip
        found.append(logged(trainer)[0])
    assert found[0]["aux_loss"] == pytest.approx(found[1]["aux_loss"], rel=1e-5)
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)


def test_a_router_loss_alone_is_no_training(store: FakeStore, tmp_path: Path) -> None:
    """No pair covers a label and nothing stands in: what the router learns is of no label."""
    lost = estranged(replace(store, records=list(store.records)))
    alone = replace(lost, records=lost.records[3:4] * 2, texts=lost.texts[3:4] * 2)
    how: dict[str, Any] = {"loss": "uld", "ce_weight": 0.0, "uncovered": "none", "max_steps": 2}
    with pytest.raises(InputError, match=r"the loss was 0 in each of the 2 steps") as refused:
        trained(mixtral(10.0), alone, tmp_path, no_self_test=True, **how)
    assert refused.value.kind == "untrained"


def test_a_router_loss_that_is_not_known_is_refused() -> None:
    config = SwitchTransformersConfig(output_router_logits=True)
    model: Any = type("Switch", (), {"config": config, "name_or_path": "a/switch"})()
    with pytest.raises(InputError, match=r"a/switch: its config asks for the loss of a router"):
        router_weight(model)
    assert router_weight(tiny.llama(300)) == 0
