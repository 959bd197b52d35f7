"""One run, done in ways that must not matter: twenty-four steps each, compared step by step.

The students are float64, so what is left is rounding of the logged float32, and a mistake of any
kind is a thousand times larger. Each comparison prints its largest and its mean difference (`-s`).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from distill.order import RowOrder
from distill.trainer import CachedTeacherTrainer
from logitstore.errors import MismatchError
from tests import tiny
from tests.fake_store import FakeStore, taught
from tests.students import logged, ragged_rows, trainer_of

GOLDEN = Path(__file__).parent / "oracle" / "loss_curve.json"
STEPS = 24
KEYS = ("loss", "grad_norm", "ce_loss", "kd_loss")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("teacher")
    return taught(teacher, tokenizer, ragged_rows(), folder, rounded=True)


def prepared(store: FakeStore, out: Path, **more: Any) -> CachedTeacherTrainer:
    """Eight rows, shuffled anew in each epoch."""
    how = {"max_steps": STEPS, "learning_rate": 1e-2, "train_sampling_strategy": "random"}
    model = tiny.llama(len(tiny.byte_bpe())).double()
    return trainer_of(model, store, out, **(how | more))


def curve(trainer: CachedTeacherTrainer) -> Tensor:
    """(steps, keys) of what was logged."""
    trainer.train()
    return torch.tensor(
        [[entry[key] for key in KEYS] for entry in logged(trainer)], dtype=torch.float64
    )


def assert_same(what: str, got: Tensor, want: Tensor, tolerance: float = 2e-6) -> None:
    """Largest and mean difference of loss and gradient norm, as parts of their size."""
    assert got.shape == want.shape
    assert len(want) >= 20
    apart = (got - want).abs() / want.abs().clamp(min=1e-3)
    for i, key in enumerate(KEYS):
        print(f"{what}: {key}: max {apart[:, i].max():.1e}, mean {apart[:, i].mean():.1e}")
    assert apart.max() <= tolerance
    assert apart.mean() <= tolerance / 4 + 1e-12


@pytest.fixture(scope="module")
def whole(store: FakeStore, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return curve(prepared(store, tmp_path_factory.mktemp("whole"), per_device_train_batch_size=8))


@pytest.mark.parametrize(("batch", "parts"), [pytest.param(2, 4, marks=pytest.mark.slow), (1, 8)])
def test_a_batch_is_the_sum_of_its_parts(
    store: FakeStore, whole: Tensor, tmp_path: Path, batch: int, parts: int
) -> None:
    how = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
    assert_same(f"{parts} x {batch} = 1 x 8", curve(prepared(store, tmp_path, **how)), whole)


def test_gradient_checkpointing_changes_nothing(
    store: FakeStore, whole: Tensor, tmp_path: Path
) -> None:
    found = curve(prepared(store, tmp_path, activation_checkpointing=True))
    assert_same("gradient checkpointing on = off", found, whole)


def test_the_chunked_head_trains_as_dense_logits_do(
    store: FakeStore, whole: Tensor, tmp_path: Path
) -> None:
    trainer = prepared(store, tmp_path)
    trainer.head.dense = True
    assert_same("StudentHead = dense", curve(trainer), whole)


def test_workers_change_nothing(store: FakeStore, whole: Tensor, tmp_path: Path) -> None:
    how = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    found = curve(prepared(store, tmp_path, **how))
    assert_same("workers 2 = 0", found, whole, tolerance=0)


# ---- cached = live ----


def test_a_cached_teacher_trains_as_a_live_one_within_the_certified_gap(
    store: FakeStore, tmp_path: Path
) -> None:
    """uld against a teacher whose whole vocabulary is there, unrounded, at the same student."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    everything = taught(teacher, tokenizer, ragged_rows(), tmp_path / "t", top_k=len(tokenizer))
    cached = prepared(store, tmp_path, loss="uld:1")
    live = prepared(everything, tmp_path, loss="uld:1")
    live.model = cached.model  # one student under both teachers, at every step of the cached run
    apart, gaps = [], []

    class Compare(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            batches = [run.data_collator(run.data.__getitems__(range(8))) for run in (cached, live)]
            with torch.no_grad():
                terms = [cached._terms(cached.model, b)["uld"] for b in batches]
            apart.append((terms[0].values_P - terms[1].values_P).abs())
            gaps.append(terms[0].bound_P)

    cached.add_callback(Compare())
    curve(cached)
    assert len(apart) == STEPS
    apart_SP, gap_SP = torch.stack(apart), torch.stack(gaps)
    print(f"cached = live: max {apart_SP.max():.1e} of {gap_SP.max():.1e}, ", end="")
    print(f"mean {apart_SP.mean():.1e} of {gap_SP.mean():.1e}")
    assert (apart_SP <= gap_SP + 1e-6).all()
    assert apart_SP.max() > 1e-3  # the bound was put to use


# ---- interrupted = not ----


@pytest.fixture(scope="module")
def uninterrupted(
    store: FakeStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Tensor]]:
    """Six steps of two epochs, AdamW with dropout, and a checkpoint of each."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer = dropping(store, folder, save_strategy="steps", save_steps=1)
    trainer.train()
    return folder, trainer.model.state_dict()


def dropping(store: FakeStore, out: Path, **more: Any) -> CachedTeacherTrainer:
    how = {
        "max_steps": 6,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "train_sampling_strategy": "random",
    }
    model = tiny.llama(len(tiny.byte_bpe()), attention_dropout=0.1)
    return trainer_of(model, store, out, **(how | more))


@pytest.mark.parametrize(
    "step", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3)), 4, 5]
)
def test_a_run_interrupted_at_any_step_ends_with_the_same_bits(
    store: FakeStore, uninterrupted: tuple[Path, dict[str, Tensor]], tmp_path: Path, step: int
) -> None:
    """Step 4 ends the first epoch of eight rows; all others lie in the middle of one."""
    folder, want = uninterrupted
    again = dropping(store, tmp_path)
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, want[name]), name


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"loss": "uld:1"}, r"trained with --loss uld:1.5,mapped_kl:2, but this run has uld:1:"),
        ({"seed": 5}, "trained with --seed 42, but this run has 5:"),
        ({"gradient_accumulation_steps": 4}, "steps of 2 sequences, but this run has 4 "),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    store: FakeStore,
    uninterrupted: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    flags: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(MismatchError, match=says):
        dropping(store, tmp_path, **flags).train(
            resume_from_checkpoint=str(uninterrupted[0] / "checkpoint-2")
        )


def test_a_checkpoint_goes_on_with_the_same_rows_however_they_are_cut(
    store: FakeStore, uninterrupted: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """As many sequences a step: 1 x 2 goes on where 2 x 1 was, as it would on two processes."""
    how = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    again = dropping(store, tmp_path, **how)
    again.train(resume_from_checkpoint=str(uninterrupted[0] / "checkpoint-5"))
    before = json.loads((uninterrupted[0] / "checkpoint-6" / "trainer_state.json").read_text())
    last = [e for e in before["log_history"] if "loss" in e][-1]
    assert logged(again)[-1]["aligned_fraction"] == last["aligned_fraction"]


# ---- the order of rows ----


def test_the_order_of_rows_is_that_of_seed_epoch_and_store() -> None:
    def order(seed: int = 1, epoch: int = 0, digest: str = "a") -> list[int]:
        made = RowOrder(10, seed, digest)
        made.epoch = epoch
        return list(made)

    assert order() == [8, 7, 2, 5, 3, 0, 9, 4, 6, 1]
    assert sorted(order()) == list(range(10))
    assert len({tuple(o) for o in (order(), order(2), order(1, 1), order(1, 0, "b"))}) == 4


# ---- golden ----


def test_fifty_steps_follow_the_curve_written_down(store: FakeStore, tmp_path: Path) -> None:
    found = curve(prepared(store, tmp_path, max_steps=50, per_device_train_batch_size=4))
    want = torch.tensor(json.loads(GOLDEN.read_text())["curve"], dtype=torch.float64)
    assert_same("golden", found, want, tolerance=1e-4)
    assert want[-1, 0] < want[0, 0]
