"""One run, done in ways that must not matter, compared step by step.

The students are float64, so what is left is rounding of the logged float32, and a mistake of any
kind is a thousand times larger. `python -m tools.exactness` shows the largest and the mean
difference of each comparison, over twenty-four steps.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from distill.data.row_order import RowOrder
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.curves import KEYS, STEPS, Record, assert_same, curve, note
from tests.kit.paths import ORACLE
from tests.kit.students import logged, ragged_rows, trainer_of
from tools.live_teacher import LiveTeacherTrainer

GOLDEN = ORACLE / "loss_curve.json"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), folder, rounded=True)


def prepared(store: FakeStore, out: Path, **more: Any) -> CachedTeacherTrainer:
    """Eight rows, shuffled anew in each epoch."""
    how = {"max_steps": STEPS, "learning_rate": 1e-2, "train_sampling_strategy": "random"}
    model = tiny.llama(len(tiny.byte_bpe())).double()
    return trainer_of(model, store, out, **(how | more))


@pytest.fixture(scope="module")
def whole(store: FakeStore, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return curve(prepared(store, tmp_path_factory.mktemp("whole"), per_device_train_batch_size=8))


@pytest.mark.parametrize(("batch", "parts"), [pytest.param(2, 4, marks=pytest.mark.slow), (1, 8)])
def test_a_batch_is_the_sum_of_its_parts(
    store: FakeStore,
    whole: Tensor,
    tmp_path: Path,
    record_property: Record,
    batch: int,
    parts: int,
) -> None:
    how = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
    assert_same(
        record_property,
        f"{parts} x {batch} = 1 x 8",
        curve(prepared(store, tmp_path, **how)),
        whole,
    )


def test_packed_rows_train_as_padded_ones_do(
    store: FakeStore, whole: Tensor, tmp_path: Path, record_property: Record
) -> None:
    found = curve(prepared(store, tmp_path, packing=True))
    assert_same(record_property, "packed = padded", found, whole)


def test_packed_parts_of_a_batch_by_workers_train_as_padded_ones_do(
    store: FakeStore, whole: Tensor, tmp_path: Path, record_property: Record
) -> None:
    """With all else that changes where rows lie and how they are read."""
    how = {
        "packing": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 2,
        "dataloader_persistent_workers": True,
        "activation_checkpointing": True,
    }
    found = curve(prepared(store, tmp_path, **how))
    assert_same(record_property, "packed 2 x 4, workers, checkpointing = padded", found, whole)


def test_gradient_checkpointing_changes_nothing(
    store: FakeStore, whole: Tensor, tmp_path: Path, record_property: Record
) -> None:
    found = curve(prepared(store, tmp_path, activation_checkpointing=True))
    assert_same(record_property, "gradient checkpointing on = off", found, whole)


def test_the_chunked_head_trains_as_dense_logits_do(
    store: FakeStore, tmp_path: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.head.student_head.CHUNK_TOKENS", 16)
    chunked, dense = (prepared(store, tmp_path) for _ in range(2))
    dense.head.dense = True
    assert chunked.data_collator(chunked.data.__getitems__(range(8)))["pieces"] is not None
    what = "StudentHead in chunks of 16 = dense"
    assert_same(record_property, what, curve(chunked), curve(dense))


def test_workers_change_nothing(
    store: FakeStore, whole: Tensor, tmp_path: Path, record_property: Record
) -> None:
    how = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    found = curve(prepared(store, tmp_path, **how))
    assert_same(record_property, "workers 2 = 0", found, whole, tolerance=0)


# ---- cached = live ----


def everything(folder: Path) -> FakeStore:
    """As `store`, but with all that the teacher says, as it says it."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    return FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), folder, top_k=len(tokenizer))


def at_this_student(run: CachedTeacherTrainer, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Loss, gradient norm and the certified gap of a batch of all rows; values and bounds in it."""
    batch = run.data_collator(run.data.__getitems__(range(8)))
    loss, terms = run.compute_loss(model, batch, return_outputs=True)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    term = terms["uld"]
    figures = torch.stack([loss.detach(), norm, term.bound_P.mean()]).double()
    return figures, torch.stack([term.values_P.detach(), term.bound_P])


def test_a_cached_teacher_trains_as_a_live_one_within_the_certified_gap(
    store: FakeStore, tmp_path: Path, record_property: Record
) -> None:
    """uld against a teacher whose whole vocabulary is there, unrounded, at the same student."""
    how = {"loss": "uld:1"}
    trained = prepared(store, tmp_path, **how)
    both = [prepared(each, tmp_path, **how) for each in (store, everything(tmp_path / "t"))]
    for run in both:
        run.batch_loss.head = trained.head  # they read the same student
    figures, values = [], []

    class Compare(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            found = [at_this_student(run, trained.model) for run in both]
            figures.append(torch.stack([each for each, _ in found]))
            values.append(torch.stack([each for _, each in found]))

    trained.add_callback(Compare())
    trained.train()
    cached_S3, live_S3 = torch.stack(figures).unbind(1)
    cached_S2P, live_S2P = torch.stack(values).unbind(1)
    assert len(cached_S3) == STEPS
    apart_S, gap_S = (cached_S3 - live_S3)[:, 0].abs(), cached_S3[:, 2]
    apart_SP = (cached_S2P - live_S2P)[:, 0].abs()
    relative = (cached_S3 - live_S3).abs() / live_S3
    note(record_property, "uld from 8 entries = live", relative, "loss: its certified gap")
    assert (apart_SP <= cached_S2P[:, 1] + 1e-6).all()
    assert (apart_S <= gap_S + 1e-6).all()
    assert apart_SP.max() > 1e-3  # the bound was put to use
    assert relative[:, 1].max() < 0.1


def test_a_store_of_the_whole_vocabulary_trains_as_a_live_teacher_does(
    tmp_path: Path, record_property: Record
) -> None:
    """tail_kl against the dense KL of the teacher itself, asked in every step."""
    tokenizer = tiny.byte_bpe()
    teacher = tiny.llama(len(tokenizer), seed=7)
    store = FakeStore.from_teacher(
        teacher, tokenizer, ragged_rows(), tmp_path / "t", top_k=len(tokenizer)
    )
    found = curve(prepared(store, tmp_path, loss="tail_kl:1"), keys=KEYS[:2])
    live = LiveTeacherTrainer(
        teacher=teacher.double(),
        model=tiny.llama(len(tokenizer)).double(),
        args=prepared(store, tmp_path, loss="ce").args,
        store=store,
        processing_class=tokenizer,
    )
    want = curve(live, keys=KEYS[:2])
    assert_same(record_property, "tail_kl from all entries = live", found, want, tolerance=2e-5)


# ---- interrupted = not ----


@pytest.fixture(scope="module")
def uninterrupted(
    store: FakeStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Tensor]]:
    """Several epochs of four steps, AdamW with dropout, and a checkpoint of each step."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer = dropping(store, folder, save_strategy="steps", save_steps=1)
    return folder, {"": curve(trainer), **trainer.model.state_dict()}


def dropping(store: FakeStore, out: Path, **more: Any) -> CachedTeacherTrainer:
    how = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "train_sampling_strategy": "random",
    }
    model = tiny.llama(len(tiny.byte_bpe()), attention_dropout=0.1)
    return trainer_of(model, store, out, **(how | more))


#: In the suite: at the ends, and after whole epochs.
KILLED = (1, STEPS // 2 - STEPS // 2 % 4, STEPS - 1)


@pytest.mark.parametrize(
    "step",
    [pytest.param(n, marks=() if n in KILLED else pytest.mark.slow) for n in range(1, STEPS)],
)
def test_a_run_interrupted_at_any_step_ends_with_the_same_bits(
    store: FakeStore,
    uninterrupted: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    record_property: Record,
    step: int,
) -> None:
    """Every fourth step ends an epoch of eight rows; all others lie in the middle of one."""
    folder, want = uninterrupted
    again = dropping(store, tmp_path)
    found = curve(again, checkpoint=str(folder / f"checkpoint-{step}"))
    assert_same(record_property, "interrupted and resumed = not", found, want[""], tolerance=0)
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, want[name]), name


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"loss": "uld:1"}, r"trained with --loss uld:1.5,mapped_kl:2, but this run has uld:1:"),
        ({"seed": 5}, "trained with --seed 42, but this run has 5:"),
        ({"gradient_accumulation_steps": 4}, "steps of 2 sequences, but this run has 4 "),
        ({"max_grad_norm": 1.0}, "--max_grad_norm 0.0, but this run has 1.0: it would be neither"),
        (
            {"learning_rate": 1e-3},
            "--learning_rate 0.01, but this run has 0.001: the checkpoint brings the old value",
        ),
        (
            {"lr_scheduler_type": "linear", "one_cycle": {"pct_start": 0.1}},
            "--lr_scheduler_type cosine, but this run has linear: the checkpoint brings the old",
        ),
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


def test_a_one_cycle_goes_on_only_as_it_was_begun(store: FakeStore, tmp_path: Path) -> None:
    """torch keeps its length and shape with its state; all others may be made longer."""
    how = {"one_cycle": {"pct_start": 0.25}, "lr_scheduler_type": "linear", "max_steps": 4}
    dropping(store, tmp_path, save_strategy="steps", save_steps=2, **how).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    for other in ({"one_cycle": {"pct_start": 0.5}}, {"max_steps": 8}):
        with pytest.raises(MismatchError, match=f"--{next(iter(other))} .* but this run has"):
            dropping(store, tmp_path, **(how | other)).train(resume_from_checkpoint=checkpoint)
    again = dropping(store, tmp_path, **how)
    again.train(resume_from_checkpoint=checkpoint)
    assert again.state.global_step == 4


def test_a_run_may_be_made_longer(
    store: FakeStore, uninterrupted: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    longer = dropping(store, tmp_path, max_steps=STEPS + 2)
    longer.train(resume_from_checkpoint=str(uninterrupted[0] / f"checkpoint-{STEPS}"))
    assert longer.state.global_step == STEPS + 2


def test_a_checkpoint_goes_on_with_the_same_rows_however_they_are_cut(
    store: FakeStore, uninterrupted: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """As many sequences a step: 1 x 2 goes on where 2 x 1 was, as it would on two processes."""
    how = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    again = dropping(store, tmp_path, **how)
    again.train(resume_from_checkpoint=str(uninterrupted[0] / "checkpoint-5"))
    end = uninterrupted[0] / f"checkpoint-{STEPS}"
    before = json.loads((end / "trainer_state.json").read_text())
    last = [e for e in before["log_history"] if "loss" in e][-1]
    assert logged(again)[-1]["covered_fraction"] == last["covered_fraction"]


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


@pytest.mark.filterwarnings("ignore:wrong labels")
def test_fifty_steps_follow_the_curve_written_down(
    store: FakeStore, tmp_path: Path, record_property: Record
) -> None:
    store = replace(store, digest="fake-digest")  # it decides the order of rows
    as_then = {"uncovered": "none", "map": "prefix"}  # the defaults when it was written down
    found = curve(prepared(store, tmp_path, max_steps=50, per_device_train_batch_size=4, **as_then))
    want = torch.tensor(json.loads(GOLDEN.read_text())["curve"], dtype=torch.float64)
    assert_same(record_property, "50 steps = those written down", found, want, tolerance=1e-4)
    assert want[-1, 0] < want[0, 0]
