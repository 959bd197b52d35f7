"""A loop of one's own trains as the Trainer does: the same rows, losses and gradients."""

import json
import os
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

import distill
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.forks import Fork
from tests.kit.own import total_variation
from tests.kit.students import logged, ragged_rows, t5, trainer_of

WIDTH = len(tiny.byte_bpe())
LOSS = f"uld:1.5,{total_variation}:0.5"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of a teacher of another tokenizer."""
    tokenizer = tiny.unigram()
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, ragged_rows(), folder
    )


def new_student() -> PreTrainedModel:
    return tiny.llama(WIDTH).double().train()


def data_of(store: Any, **how: Any) -> distill.Batches:
    how = {"loss": LOSS, "model": new_student(), "batch_size": 3, **how}
    return distill.batches(store, tiny.byte_bpe(), **how)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(store: FakeStore, out: Path, **how: Any) -> CachedTeacherTrainer:
    how = {
        "loss": LOSS,
        "per_device_train_batch_size": 3,
        "train_sampling_strategy": "random",
        "max_steps": 5,
        **how,
    }
    trainer = trainer_of(new_student(), store, out, **how)
    trainer.train()
    return trainer


HOW: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "a mean over pairs": {"uncovered": "none"},
    "balanced": {"balance": True},
    "packed": {"packing": True},
    "without cross-entropy": {"ce_weight": 0.0},
    "by position": {"pairing": "position"},
}


@pytest.mark.parametrize("how", HOW)
def test_a_plain_loop_has_the_rows_losses_and_weights_of_the_trainer(
    store: FakeStore, tmp_path: Path, how: str
) -> None:
    """Over an epoch's end, whose last batch is smaller."""
    run = trained(store, tmp_path, **HOW[how])
    model = new_student()
    data = data_of(store, model=model, **HOW[how])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses: list[float] = []
    assert len(data) == 3
    while len(losses) < 5:
        for batch in data:
            if len(losses) < 5:
                loss = data.loss(model, batch)
                loss.backward()
                losses.append(loss.item())
                optimizer.step()
                optimizer.zero_grad()
    assert losses == pytest.approx([entry["loss"] for entry in logged(run)], rel=1e-6)
    torch.testing.assert_close(weights(model), weights(run.model), rtol=1e-9, atol=1e-12)


def test_batches_that_are_accumulated_share_their_counts(store: FakeStore) -> None:
    """A step of three batches is that of all their rows together."""
    model = new_student()
    for how in ({}, {"uncovered": "none"}):
        data = data_of(store, model=model, **how)
        batches = list(data)
        counts = data.counts(batches)
        model.zero_grad()
        for batch in batches:
            data.loss(model, batch, counts).backward()
        got = gradient(model)
        whole = data_of(store, model=model, batch_size=8, **how)
        model.zero_grad()
        whole.loss(model, next(iter(whole))).backward()
        torch.testing.assert_close(got, gradient(model), rtol=1e-9, atol=1e-12)
    labels = int(sum(len(batch["rows"]) for batch in batches))
    with pytest.raises(InputError, match=r"counts: the number of labels divides no term but"):
        data.loss(model, batches[0], labels)


def test_means_of_terms_are_those_of_the_batch(store: FakeStore) -> None:
    model = new_student()
    data = data_of(store, model=model, batch_size=8, ce_weight=1.0)
    batch = next(iter(data))
    terms = data.terms(model, batch)
    assert set(terms) == {"ce", "uld", "total_variation"}
    total = terms["ce"] + 1.5 * terms["uld"] + 0.5 * terms["total_variation"]
    assert data.loss(model, batch).item() == pytest.approx(total, rel=1e-6)


class Module(nn.Module):
    """What a LightningModule of the documentation is, as far as this is concerned."""

    def __init__(self, store: FakeStore) -> None:
        super().__init__()
        self.model = new_student()
        self.data = data_of(store, model=self.model)

    def train_dataloader(self) -> Any:
        return self.data.loader

    def training_step(self, batch: Mapping[str, Any], number: int) -> Tensor:
        return self.data.loss(self.model, batch)


def moved(value: Any) -> Any:
    """Move a batch as Lightning does: into collections, and no frozen dataclass is allowed."""
    assert not hasattr(value, "__dataclass_fields__")
    if isinstance(value, Tensor):
        return value.to("cpu", non_blocking=True)
    if isinstance(value, Mapping):
        return type(value)({k: moved(v) for k, v in value.items()})
    return [moved(each) for each in value] if isinstance(value, list | tuple) else value


def test_a_loop_that_owns_model_loader_and_step_trains_as_the_trainer(
    store: FakeStore, tmp_path: Path
) -> None:
    run = trained(store, tmp_path, max_steps=3)
    module = Module(store)
    optimizer = torch.optim.SGD(module.model.parameters(), lr=1e-2)
    for number, batch in enumerate(module.train_dataloader()):
        module.training_step(moved(batch), number).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(module.model), weights(run.model), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_trl_trains_with_this_loss_as_the_trainer_does(
    store: FakeStore, tmp_path: Path, accumulated: int
) -> None:
    """With its own counts, and its own accumulation of gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is only asked here
        trl = pytest.importorskip("trl")
    model = new_student()
    data = data_of(store, model=model)

    class Distilling(trl.SFTTrainer):  # type: ignore[name-defined,misc]
        loss_is_scaled_for_ga = True

        def compute_loss(
            self,
            model: nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            loss = data.loss(model, inputs, num_items_in_batch)
            return (loss, {}) if return_outputs else loss

    how: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": accumulated,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = trl.SFTConfig(
            output_dir=str(tmp_path / "trl"),
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            bf16=False,
            gradient_checkpointing=False,
            **how,
        )
        theirs = Distilling(
            model=model,
            args=args,
            train_dataset=data.indices,
            data_collator=data.collate_indices,
            processing_class=tiny.byte_bpe(),
        )
        theirs.train()
    del how["report_to"]
    run = trained(store, tmp_path / "ours", **how)
    torch.testing.assert_close(weights(model), weights(run.model), rtol=1e-9, atol=1e-12)
    got = [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert got == pytest.approx([entry["loss"] for entry in logged(run)], rel=1e-6)


def of_rank(store: FakeStore, folder: Path, port: int) -> None:
    """One of two processes: a loop of one's own, and the Trainer, each with a loss of one's own."""
    rank = int(os.environ["RANK"])
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = new_student()
    data = data_of(store, model=model, batch_size=2)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    rows = []
    for batch in data:
        rows.append(batch["row"].tolist())
        data.loss(wrapped, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(weights(model), folder / f"loop-{rank}.pt")
    run = trained(store, folder / "run", per_device_train_batch_size=2, max_steps=2)
    torch.save(weights(run.model), folder / f"trainer-{rank}.pt")
    (folder / f"rows-{rank}.json").write_text(json.dumps(rows))
    run.end()


def test_two_processes_train_as_one(store: FakeStore, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        other = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        Fork(lambda: of_rank(store, tmp_path, port), shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    for each in both:
        each.result()
    one = trained(store, tmp_path / "one", per_device_train_batch_size=4, max_steps=2)
    for rank in (0, 1):
        for name in ("loop", "trainer"):
            got = torch.load(tmp_path / f"{name}-{rank}.pt")
            torch.testing.assert_close(got, weights(one.model), rtol=1e-8, atol=1e-11)
    rows = [json.loads((tmp_path / f"rows-{rank}.json").read_text()) for rank in (0, 1)]
    assert sorted(row for each in rows for batch in each for row in batch) == list(range(8))


# ---- what is refused ----


def test_it_says_what_does_not_fit(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for how, message in (
        ({"loss": "ce", "ce_weight": 0.0}, "leaves nothing to train on"),
        ({"loss": "tail_kl"}, "made with tokenizer"),
        ({"packing": True, "model": None}, r"none is given\. Add model="),
        ({"uncovered": "some"}, "uncovered is 'some', expected hard or none or scale"),
        ({"temperature": 2.0}, "would have no effect"),
    ):
        with pytest.raises(InputError if "made with" not in message else ValueError, match=message):
            data_of(store, **how)
    two_sided = t5().double().train()
    data = data_of(store, model=None)
    with pytest.raises(InputError, match=r"an encoder-decoder, whose rows are cut in two\. Add"):
        data.loss(two_sided, next(iter(data)))


def test_a_loss_that_is_not_finite_names_its_rows(store: FakeStore) -> None:
    model = new_student()
    data = data_of(store, model=model, self_test=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"^rows \d, \d, \d of the dataset: the loss is nan"):
        data.loss(model, next(iter(data)))


def test_a_path_is_as_good_as_a_store(store: FakeStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no store\.json"):
        data_of(tmp_path)
    assert os.listdir(tmp_path) == []
