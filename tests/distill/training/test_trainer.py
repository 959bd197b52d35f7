"""The student run: aligned with the teacher, and the same run however its batch is cut."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from distill.data.dataset import StoreDataset
from distill.training.loss_terms import Term
from distill.training.one_cycle import one_cycle
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError, MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import estranged, logged, rows_with_a_stranger, settings, t5, trainer_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """A Unigram teacher; row 3 has records that no byte BPE student can be aligned with."""
    tokenizer = tiny.unigram()
    made = FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7),
        tokenizer,
        rows_with_a_stranger(),
        tmp_path_factory.mktemp("teacher"),
        rounded=True,
    )
    return estranged(made)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny.llama(len(tiny.byte_bpe()))


# ---- the loss does not feel how a batch is cut ----


class MeanPerMicrobatch(CachedTeacherTrainer):
    """The common mistake: each micro-batch divided by its own counts, then averaged."""

    loss_is_scaled_for_ga = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return super().compute_loss(model, inputs, return_outputs, None)


class LabelsForEveryTerm(CachedTeacherTrainer):
    """The other one: every term divided by the number of labels, though it is of pairs."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        counts = super()._get_num_items_in_batch(batch_samples, device)
        return counts[:1].expand_as(counts)


class PairsForEveryTerm(CachedTeacherTrainer):
    """Its opposite: a term divided by its pairs, though it is of all labels."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        pairs = [[len(a["index"]) for a in b["teacher"].values()] for b in batch_samples]
        return torch.cat(
            [super()._get_num_items_in_batch(batch_samples, device)[:1], torch.tensor(pairs).sum(0)]
        )


def trajectory(
    cls: type[CachedTeacherTrainer], store: FakeStore, out: Path, batch: int, **more: Any
) -> Tensor:
    trainer = trainer_of(
        tiny.llama(len(tiny.byte_bpe())),
        store,
        out,
        cls,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=8 // batch,
        max_steps=2,
        **more,
    )
    trainer.train()
    keys = [
        k for k in ("loss", "grad_norm", "ce_loss", "kd_loss", "kd_gap") if k in logged(trainer)[0]
    ]
    return torch.tensor([[entry[key] for key in keys] for entry in logged(trainer)])


@pytest.mark.parametrize(
    "how",
    [{"pairing": "bytes"}, {"pairing": "position"}, {"uncovered": "none"}, {"uncovered": "scale"}],
    ids=str,
)
def test_gradient_accumulation_does_not_change_the_run(
    store: FakeStore, tmp_path: Path, how: dict[str, str]
) -> None:
    whole = trajectory(CachedTeacherTrainer, store, tmp_path, 8, **how)
    cut = trajectory(CachedTeacherTrainer, store, tmp_path, 2, **how)
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


def test_one_row_of_these_has_no_aligned_position(store: FakeStore) -> None:
    data = StoreDataset(store, ByteTokenizer(tiny.byte_bpe()), ["uld", "mapped_kl"])
    aligned = [data[i].aligned for i in range(8)]
    assert aligned[3] == 0
    assert data[3].is_label.any()
    assert min(aligned[:3] + aligned[4:]) > 0


def test_the_common_mistake_would_be_seen(store: FakeStore, tmp_path: Path) -> None:
    whole = trajectory(MeanPerMicrobatch, store, tmp_path, 8)
    cut = trajectory(MeanPerMicrobatch, store, tmp_path, 1)
    assert (cut[:, 0] - whole[:, 0]).abs().min() > 0.02


def test_one_count_for_all_terms_would_be_seen(store: FakeStore, tmp_path: Path) -> None:
    for cls, uncovered in ((LabelsForEveryTerm, "none"), (PairsForEveryTerm, "hard")):
        right = trajectory(CachedTeacherTrainer, store, tmp_path, 8, uncovered=uncovered)
        wrong = trajectory(cls, store, tmp_path, 8, uncovered=uncovered)
        assert (right[:, 0] - wrong[:, 0]).abs().min() > 0.02


# ---- other students ----


def test_an_encoder_decoder_is_trained_and_feels_no_cut_of_its_batch(
    store: FakeStore, tmp_path: Path
) -> None:
    runs = []
    for batch in (8, 2):
        trainer = trainer_of(
            t5(),
            store,
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            max_steps=4,
            learning_rate=1e-3,
            eval_store=store,
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert not trainer.head.dense
        assert trainer.evaluate()["eval_loss"] < before
        runs.append(torch.tensor([[e["loss"], e["kd_gap"]] for e in logged(trainer)]))
        assert logged(trainer)[0]["loss"] == pytest.approx(before, rel=1e-4)
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-4, atol=1e-5)


def test_a_decoder_whose_start_is_not_known_is_refused(store: FakeStore, tmp_path: Path) -> None:
    model = t5()
    model.config.decoder_start_token_id = None
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(InputError, match="decoder_start_token_id, so what its decoder begins with"):
        trainer_of(model, store, tmp_path)


# ---- what is logged ----


def test_the_logged_loss_is_the_sum_of_its_logged_terms(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    trainer = trainer_of(
        model,
        store,
        tmp_path,
        ce_weight=0.7,
        logging_steps=2,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert len(logged(trainer)) == 2
    for entry in logged(trainer):
        kd = 1.5 * entry["uld_loss"] + 2 * entry["mapped_kl_loss"]
        assert entry["kd_loss"] == pytest.approx(kd, rel=1e-5)
        assert entry["loss"] == pytest.approx(0.7 * entry["ce_loss"] + kd, rel=1e-4)
        assert 0 < entry["covered_fraction"] < 1
        assert 0 < entry["store_wait_fraction"] < 1
        assert entry["tokens_per_second"] > 0
        assert entry["kd_gap"] > 0
        assert "skipped_sequences" not in entry


def test_a_one_cycle_goes_up_and_down_once(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    shape = {"pct_start": 0.4, "div_factor": 2.0, "final_div_factor": 5.0, "cycle_momentum": False}
    trainer = trainer_of(
        model, store, tmp_path, one_cycle=shape, lr_scheduler_type="linear", max_steps=10
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in logged(trainer)]
    peak = int(torch.tensor(rates).argmax())
    assert rates[0] == pytest.approx(1e-2 / 2)
    assert rates[peak] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-2 / 2 / 5)
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("steps", [2, 10, 49])
def test_a_one_cycle_may_be_so_short_that_its_rise_is_one_step(steps: int) -> None:
    """Where pct_start * steps is 1, torch alone would divide by zero."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = one_cycle(optimizer, steps, 1.0, {"pct_start": 1 / steps, "div_factor": 4.0})
    rates = []
    for _ in range(steps):
        optimizer.step()
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
    assert rates[0] == 0.25
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert max(rates) <= 1


def test_training_again_counts_from_nothing(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    trainer = trainer_of(model, store, tmp_path)
    first, second = (trainer.train().metrics["train_tokens"] for _ in range(2))
    assert first == second > 0


def test_skipped_rows_are_logged_and_change_no_other_value(
    store: FakeStore, tmp_path: Path
) -> None:
    odd = store.texts[0]._replace(status="template_changed_text")
    more = replace(store, records=[*store.records, store.records[0]], texts=[*store.texts, odd])
    models = [tiny.llama(len(tiny.byte_bpe())) for _ in range(2)]
    runs = [
        trainer_of(m, s, tmp_path, per_device_train_batch_size=9, max_steps=1, max_lost=0.2)
        for m, s in zip(models, (store, more), strict=True)
    ]
    for run in runs:
        run.train()
    without, with_it = logged(runs[0])[0], logged(runs[1])[0]
    assert with_it.pop("skipped_sequences") == 1
    for key in ("loss", "grad_norm", "ce_loss", "kd_loss", "kd_gap", "covered_fraction"):
        assert with_it[key] == pytest.approx(without[key], rel=1e-5)


@pytest.mark.parametrize(("uncovered", "kd"), [("hard", 1.5 + 2), ("none", 0), ("scale", 0)])
def test_a_batch_without_an_aligned_position_is_cross_entropy_and_counted(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path, uncovered: str, kd: float
) -> None:
    alone = replace(store, records=store.records[3:4] * 2, texts=store.texts[3:4] * 2)
    how = {"per_device_train_batch_size": 1, "max_steps": 3, "uncovered": uncovered}
    with pytest.warns(UserWarning, match="low coverage"):
        trainer = trainer_of(model, alone, tmp_path, learning_rate=1e-3, **how)
    trained = trainer.train()
    for number, entry in enumerate(logged(trainer), 1):
        assert entry["loss"] == pytest.approx((1 + kd) * entry["ce_loss"])
        assert entry["loss"] > 0
        assert entry["kd_loss"] == pytest.approx(kd * entry["ce_loss"])
        assert entry["covered_fraction"] == 0
        assert entry["unaligned_sequences"] == number
        assert math.isfinite(entry["grad_norm"])
    assert trained.metrics["train_unaligned_sequences"] == 3


def test_an_eval_store_of_another_teacher_is_refused(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    spec = replace(store.spec, teacher={"fingerprint": "another"})
    held_out = replace(store, spec=spec, provenance={"teacher": "hub/other"}, path=Path("held"))
    with pytest.raises(MismatchError, match=r"held: its teacher is hub/other .*that of fake-store"):
        trainer_of(model, store, tmp_path / "out", eval_store=held_out)
    assert not (tmp_path / "out").exists()
    trainer_of(model, store, tmp_path, eval_store=held_out, loss="ce")  # which asks no teacher
    moved = replace(held_out, provenance={"teacher": "/models/tiny-teacher"})
    trainer_of(model, store, tmp_path, eval_store=moved)


def test_an_eval_store_of_the_rows_that_are_trained_on_is_called_that(
    store: FakeStore,
    model: PreTrainedModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer_of(model, store, tmp_path, eval_store=replace(store, path=Path("a-copy")))
    assert "--eval_store a-copy: holds what --store does" in caplog.text
    caplog.clear()
    trainer_of(model, store, tmp_path, eval_store=replace(store, digest="another"))
    assert not caplog.text


def test_a_step_without_anything_to_learn_leaves_the_student_alone(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    """And a run of such steps alone is no run; see test_untrained.py."""
    lost = [t._replace(status="template_changed_text") for t in store.texts[:1]]
    mixed = replace(store, texts=[*lost, *store.texts[1:]])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    how = {"per_device_train_batch_size": 1, "max_steps": 1, "max_lost": 1}
    trainer = trainer_of(model, mixed, tmp_path, **how)
    with pytest.raises(InputError, match=r"the 1 step had no label"):
        trainer.train()
    assert logged(trainer)[0]["loss"] == 0
    torch.testing.assert_close(model.state_dict(), before)


def test_a_term_of_weight_0_cannot_spoil_the_loss(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    """0 times infinity is NaN: a label that the student excludes is none of its business then."""
    trainer = trainer_of(model, store, tmp_path, ce_weight=0.0, loss="uld:1")
    infinite, index = torch.tensor([torch.inf]), torch.tensor([0])
    terms = {"ce": Term(infinite, index, 0 * index)}
    assert trainer.batch_loss.total(terms, [infinite.sum(), torch.tensor(0.25)]) == 0.25


# ---- evaluation ----


def test_evaluation_does_not_depend_on_its_batch_size(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    results = [
        trainer_of(
            model, store, tmp_path, eval_store=store, per_device_eval_batch_size=size
        ).evaluate()
        for size in (8, 3, 1)
    ]
    for other in results[1:]:
        for key in results[0]:
            if key.endswith(("loss", "gap", "fraction")):
                assert other[key] == pytest.approx(results[0][key], rel=1e-5)


def test_evaluation_during_training_leaves_the_training_log_alone(
    store: FakeStore, tmp_path: Path
) -> None:
    runs = []
    for more in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_store": store}):
        trainer = trainer_of(tiny.llama(len(tiny.byte_bpe())), store, tmp_path, **more)
        trainer.train()
        runs.append([(e["loss"], e["ce_loss"], e["kd_loss"]) for e in logged(trainer)])
    assert runs[0] == runs[1]
    evaluated = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert len(evaluated) == 3
    assert evaluated[-1] < evaluated[0]


def test_evaluation_needs_something_to_evaluate_on(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    for more in ({"eval_strategy": "steps"}, {"eval_on_start": True}, {"do_eval": True}):
        with pytest.raises(InputError, match=r"no text to evaluate on\. Add --eval_store"):
            trainer_of(model, store, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


# ---- seeds, checkpoints ----


class Order(TrainerCallback):
    """Notes which rows were trained on, in order."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []


class Noting(CachedTeacherTrainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        order = next(c for c in self.callback_handler.callbacks if isinstance(c, Order))
        order.rows.append(inputs["attention_mask"].sum(1).tolist())
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def order_of(store: FakeStore, out: Path, **more: Any) -> list[list[int]]:
    order = Order()
    trainer = trainer_of(
        tiny.llama(len(tiny.byte_bpe())),
        store,
        out,
        Noting,
        callbacks=[order],
        per_device_train_batch_size=2,
        train_sampling_strategy="random",
        max_steps=5,  # an epoch and a step
        **more,
    )
    trainer.train()
    return order.rows


def test_a_seed_fixes_the_order_of_the_data(store: FakeStore, tmp_path: Path) -> None:
    first = order_of(store, tmp_path, seed=1)
    assert order_of(store, tmp_path, seed=1) == first
    assert order_of(store, tmp_path, seed=2) != first
    assert order_of(store, tmp_path, seed=1, loss="ce") == first  # contenders see the same data
    assert order_of(store, tmp_path, seed=1, dataloader_num_workers=2) == first


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    store: FakeStore, tmp_path: Path
) -> None:
    how: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "random",
        "save_steps": 3,
        "save_strategy": "steps",
        "optim": "adamw_torch",
        "max_steps": 6,
    }
    whole = trainer_of(tiny.llama(len(tiny.byte_bpe())), store, tmp_path, **how)
    whole.train()
    again = trainer_of(tiny.llama(len(tiny.byte_bpe()), seed=5), store, tmp_path, **how)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], weight, rtol=0, atol=0)
    assert (tmp_path / "checkpoint-6" / "tokenizer.json").exists()


def test_a_checkpoint_of_another_store_is_refused(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    trainer_of(model, store, tmp_path, save_strategy="steps", save_steps=3).train()
    checkpoint = str(tmp_path / "checkpoint-3")
    other = trainer_of(model, replace(store, digest="other"), tmp_path)
    with pytest.raises(MismatchError, match=r"trained on store fake-\S+ .* is other"):
        other.train(resume_from_checkpoint=checkpoint)
    grown = replace(store, records=store.records * 2, texts=store.texts * 2)
    with pytest.raises(MismatchError, match=r"with 8 sequences, but .* with 16"):
        trainer_of(model, grown, tmp_path).train(resume_from_checkpoint=True)
    (Path(checkpoint) / "distill.json").unlink()
    with pytest.raises(MismatchError, match="not a checkpoint of `distill train`"):
        trainer_of(model, store, tmp_path).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(InputError, match="holds no checkpoint to resume from"):
        trainer_of(model, store, tmp_path / "new").train(resume_from_checkpoint=True)


# ---- what stops a run ----


class Poison(TrainerCallback):
    """Breaks the student after its first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        with torch.no_grad():
            model.lm_head.weight[0, 0] = torch.nan


def test_a_loss_that_is_not_a_number_stops_before_the_step(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    trainer = trainer_of(model, store, tmp_path, callbacks=[Poison()])
    with pytest.raises(
        InputError,
        match=r"step 2, rows 0, 1, .* of the dataset: the loss is nan \(ce nan, .*--learning_rate",
    ):
        trainer.train()
    assert trainer.state.global_step == 1
    assert int(torch.isnan(model.lm_head.weight).sum()) == 1  # a step would have spread it


def test_a_gradient_that_is_not_finite_stops_before_the_step(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    def explode(gradient: Tensor) -> Tensor:
        return gradient * torch.inf

    model.model.norm.weight.register_hook(explode)
    trainer = trainer_of(model, store, tmp_path)
    with pytest.raises(
        InputError,
        match=r"step 1, rows 0, 1, 2, .*, 7 of the dataset: the gradient norm is (nan|inf) ",
    ):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.fixture
def too_small() -> PreTrainedModel:
    return tiny.llama(100)


def test_a_tokenizer_larger_than_its_model_is_refused(
    store: FakeStore, too_small: PreTrainedModel, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"only 100 embeddings.*resize_token_embeddings\(300\)"):
        trainer_of(too_small, store, tmp_path)


def test_a_student_without_tokenizer_is_refused(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="processing_class is missing"):
        CachedTeacherTrainer(model, settings(tmp_path), store)


def test_one_process_with_several_gpus_is_refused(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    args = settings(tmp_path)
    args._n_gpu = 4
    with pytest.raises(InputError, match=r"4 GPUs but one process.*torchrun --nproc-per-node 4"):
        CachedTeacherTrainer(model, args, store, processing_class=tiny.byte_bpe())


def test_a_store_without_ids_stops_mapped_kl_before_anything_is_written(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path
) -> None:
    spec = replace(store.spec, has_ids=False)
    with pytest.raises(MismatchError, match="captured with --no-ids"):
        trainer_of(model, replace(store, spec=spec), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:wrong labels")  # of so few tokens
def test_rows_are_cut_at_what_the_student_reads(store: FakeStore, tmp_path: Path) -> None:
    short = tiny.llama(len(tiny.byte_bpe()), max_position_embeddings=12)
    assert trainer_of(short, store, tmp_path, max_lost=1).data.max_length == 12
    assert trainer_of(short, store, tmp_path, max_lost=1, max_length=7).data.max_length == 7
    assert trainer_of(short, store, tmp_path, max_lost=1, max_length=70).data.max_length == 12


@pytest.mark.parametrize(
    "flags",
    [
        {"bf16": True, "bf16_full_eval": True},
        {"activation_checkpointing": True},
        {"neftune_noise_alpha": 5.0},
        {"auto_find_batch_size": True},
        {"include_num_input_tokens_seen": "non_padding"},
        {"torch_empty_cache_steps": 1},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 3},
        {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"optim": "adafactor"},
        {"full_determinism": True},
        {"skip_memory_metrics": False},
        {"use_cache": True},
        {"max_grad_norm": 0.5},
        {"accelerator_config": {"split_batches": True}},
        {"train_sampling_strategy": "random", "num_train_epochs": 2, "max_steps": -1},
    ],
)
def test_flags_that_are_let_through_do_train(
    store: FakeStore, model: PreTrainedModel, tmp_path: Path, flags: dict[str, Any]
) -> None:
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "eval_store": store, "max_steps": 2}
    trainer = trainer_of(model, store, tmp_path, **(evaluating | flags))
    trainer.train()
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert len(losses) >= 2
    assert losses[-1] < losses[0]
