"""Labels that no pair covers: every label weighs the same, whatever a loss knows of it.

The losses here have the hard label as their target, so they teach nothing that cross-entropy does
not: what is left is the weight that each label gets.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.data.collator import Collator
from distill.data.example import Example
from distill.losses import all_losses
from distill.losses.aligned import Aligned, Arrays
from distill.losses.loss import Ask, Loss, Options, Pairing, Student, Teacher
from distill.training.arguments import Uncovered
from distill.training.command_line import parse
from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError, MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.curves import curve
from tests.kit.students import estranged, logged, rows_with_a_stranger, settings, t5, trainer_of

CE_WEIGHT, WEIGHT = 0.5, 3.0
SHARES = ("all", "some", "none")
KINDS = ("starts", "groups", "positions", "sequence")
WAYS = get_args(Uncovered)


def hard_label(kind: str, share: str) -> Loss:
    """-log p of the labels of each pair: their sum, or for a sequence their mean."""

    def arrays(aligned: Aligned, _options: Options) -> Arrays:
        keep = {"all": slice(None), "some": slice(1, None, 2), "none": slice(0)}[share]
        kept = replace(aligned, pairs=aligned.pairs[keep])
        if kind != "sequence":
            return {"index": kept.last_label, **kept.labels()}
        of_one = np.zeros_like(kept.last_label)
        index = kept.last_label
        return {"index": index[:1], "token_index": index, "token_pair": of_one}

    def values(teacher: Teacher, student: Student, _options: Options) -> Tensor:
        values_P = -student.added_up(teacher["token_index"], teacher["token_pair"])
        if kind != "sequence":
            return values_P
        return values_P / torch.bincount(teacher["token_pair"], minlength=len(values_P))

    pairing: Any = Pairing(kind)  # type: ignore[arg-type]
    return Loss(frozenset(), pairing, arrays, lambda _teacher, _options: Ask(), values)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        for share in SHARES:
            monkeypatch.setitem(all_losses(), f"{kind}-{share}", hard_label(kind, share))
    monkeypatch.setattr("distill.losses.names.loss_names", lambda: list(all_losses()))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of a teacher of another tokenizer; of some labels nothing is known, and of one row."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("teacher")
    return estranged(FakeStore.from_teacher(teacher, tokenizer, rows_with_a_stranger(), folder))


def new_student() -> PreTrainedModel:
    return tiny.llama(len(tiny.byte_bpe())).double()


@pytest.fixture
def student() -> PreTrainedModel:
    return new_student()


Examples = list[Example]


def eight_rows(trainer: CachedTeacherTrainer) -> Examples:
    return [trainer.data[i] for i in range(8)]


def gradient(
    trainer: CachedTeacherTrainer,
    sizes: list[int],
    chunk_tokens: int | None = None,
    rows: Examples | None = None,
) -> Tensor:
    """The flat gradient of one step of eight rows in micro-batches of these sizes."""
    collate = Collator(0, list(trainer.weights), chunk_tokens=chunk_tokens)
    left = iter(rows or eight_rows(trainer))
    batches = [collate([next(left) for _ in range(size)]) for size in sizes]
    if chunk_tokens == 75:  # longer than every sequence
        assert len(batches[0]["pieces"].each) > 1
    counts = trainer.batch_loss.counts(batches)
    model = trainer.head._model
    model.zero_grad()
    for batch in batches:
        trainer.compute_loss(model, batch, num_items_in_batch=counts).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def by_definition(
    trainer: CachedTeacherTrainer, name: str, uncovered: str, rows: Examples
) -> Tensor:
    """That gradient, with the weight of each label written out."""
    batch = Collator(0, [name])(rows)
    arrays: dict[str, Tensor] = batch["teacher"][name]
    pairs, labels = len(arrays["index"]), len(batch["rows"])
    weight_N = torch.zeros(labels, dtype=torch.float64)
    for i in range(pairs):
        covered = arrays["token_index"][arrays["token_pair"] == i].long()
        is_mean = uncovered == "none" and name.startswith("sequence")
        weight_N[covered] = 1 / len(covered) if is_mean else 1
    weight_N *= labels / max(pairs, 1) if uncovered == "none" else 1
    weight_N[weight_N == 0] = uncovered == "hard"
    model = trainer.head._model
    logits = model(batch["input_ids"].long(), batch["attention_mask"]).logits.flatten(0, 1)
    own = batch["labels"].flatten()[batch["rows"] + 1].long()
    ce_N = torch.nn.functional.cross_entropy(logits[batch["rows"]], own, reduction="none")
    model.zero_grad()
    ((CE_WEIGHT + WEIGHT * weight_N) * ce_N).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)


CUTS: dict[str, tuple[list[int], int | None]] = {
    "whole": ([8], None),
    "micro-batches": ([3, 2, 1, 2], None),
    "pieces": ([8], 75),
    "pieces of micro-batches": ([3, 5], 41),
}


@pytest.fixture(scope="module")
def of_text(store: FakeStore, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The gradient of cross-entropy alone, at the weight of both terms."""
    both = CE_WEIGHT + WEIGHT
    out = tmp_path_factory.mktemp("text")
    return gradient(trainer_of(new_student(), store, out, loss="ce", ce_weight=both), [8])


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_the_hard_label_is_cross_entropy_whatever_it_covers(
    store: FakeStore,
    student: PreTrainedModel,
    of_text: Tensor,
    tmp_path: Path,
    kind: str,
    share: str,
) -> None:
    """In one cut; the next test shows that no cut is felt."""
    loss = f"{kind}-{share}:{WEIGHT}"
    trainer = trainer_of(student, store, tmp_path, loss=loss, ce_weight=CE_WEIGHT)
    assert_same(gradient(trainer, *CUTS["pieces of micro-batches"]), of_text)


@pytest.mark.parametrize("uncovered", WAYS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_label_weighs_what_its_way_says(
    store: FakeStore,
    student: PreTrainedModel,
    tmp_path: Path,
    kind: str,
    share: str,
    uncovered: str,
) -> None:
    """`hard` 1; `scale` 1 if covered; `none` labels / pairs, a mean within a sequence."""
    name = f"{kind}-{share}"
    how = {"loss": f"{name}:{WEIGHT}", "ce_weight": CE_WEIGHT, "uncovered": uncovered}
    trainer = trainer_of(student, store, tmp_path, **how)
    rows = eight_rows(trainer)
    want = by_definition(trainer, name, uncovered, rows)
    for sizes, chunk_tokens in CUTS.values():
        assert_same(gradient(trainer, sizes, chunk_tokens, rows), want)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_the_place_of_a_pair_weighs_labels_unequally(
    store: FakeStore, student: PreTrainedModel, of_text: Tensor, tmp_path: Path, kind: str
) -> None:
    """Why `none` is not the default: without any teacher, another gradient than the text's."""
    how = {"loss": f"{kind}-some:{WEIGHT}", "ce_weight": CE_WEIGHT, "uncovered": "none"}
    got = gradient(trainer_of(student, store, tmp_path, **how), [8])
    assert torch.nn.functional.cosine_similarity(got, of_text, dim=0) < 0.97


RUNS: dict[str, dict[str, Any]] = {
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "packed": {"packing": True},
    "balanced": {"balance": True},
    "two losses": {"loss": "groups-some:1,sequence-some:2"},
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_with_the_hard_label_for_a_teacher_is_the_run_of_cross_entropy(
    store: FakeStore, tmp_path: Path, run: str
) -> None:
    """Also as it is logged and evaluated."""
    models = [tiny.llama(len(tiny.byte_bpe())).double() for _ in range(2)]
    how = {"loss": f"groups-some:{WEIGHT}", "eval_store": store} | RUNS[run]
    trainer = trainer_of(models[0], store, tmp_path, ce_weight=CE_WEIGHT, **how)
    weight = 1.0 if trainer.args.balance else WEIGHT
    plain = trainer_of(models[1], store, tmp_path, loss="ce", ce_weight=CE_WEIGHT + weight)
    keys = ("loss", "grad_norm", "ce_loss")
    torch.testing.assert_close(curve(trainer, keys=keys), curve(plain, keys=keys))
    for entry in (*logged(trainer), evaluated := of_evaluation(trainer)):
        assert entry["kd_loss"] == pytest.approx(WEIGHT * entry["ce_loss"], rel=1e-5)
        assert 0.2 < entry["covered_fraction"] < 0.8
    assert evaluated["loss"] == pytest.approx((CE_WEIGHT + WEIGHT) * evaluated["ce_loss"], rel=1e-5)


def of_evaluation(trainer: CachedTeacherTrainer) -> dict[str, float]:
    return {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}


def test_the_hard_label_stands_in_for_an_encoder_decoder_too(
    store: FakeStore, tmp_path: Path
) -> None:
    curves = []
    for loss, ce_weight in ((f"groups-some:{WEIGHT}", CE_WEIGHT), ("ce", CE_WEIGHT + WEIGHT)):
        how = {"ce_weight": ce_weight, "learning_rate": 1e-3}
        trainer = trainer_of(t5().double(), store, tmp_path, loss=loss, **how)
        curves.append(curve(trainer, keys=("loss", "grad_norm", "ce_loss")))
    torch.testing.assert_close(*curves)


def test_what_is_logged_as_covered_is_where_nothing_stands_in(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    """Counted by the values of the term: with `scale` they are 0 at all other labels."""
    how = {"loss": "starts-some:1", "uncovered": "scale", "eval_store": store}
    trainer = trainer_of(student, store, tmp_path, **how)
    batch = trainer.data_collator([trainer.data[i] for i in range(8)])
    _, terms = trainer.compute_loss(student, batch, return_outputs=True)
    share = float((terms["starts-some"].values_P != 0).double().mean())
    assert trainer.evaluate()["eval_covered_fraction"] == pytest.approx(share)


def test_the_certified_gap_is_that_of_the_mean_over_all_labels(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    """The hard label is known: it adds nothing to the gap, and its labels make it smaller."""
    gaps, labels = {}, 0
    for uncovered in WAYS:
        how = {"loss": "uld:1", "uncovered": uncovered, "eval_store": store}
        trainer = trainer_of(student, store, tmp_path, **how)
        batch = trainer.data_collator([trainer.data[i] for i in range(8)])
        labels, pairs = len(batch["rows"]), len(batch["teacher"]["uld"]["index"])
        gaps[uncovered] = trainer.evaluate()["eval_kd_gap"]
    assert pairs < labels
    assert gaps["hard"] == pytest.approx(gaps["none"] * pairs / labels, rel=1e-6)
    assert gaps["scale"] == pytest.approx(gaps["hard"], rel=1e-9)


# ---- the flag ----


def test_the_hard_label_stands_in_unless_a_flag_says_otherwise() -> None:
    needed = ["--store", "s", "--output_dir", "o", "--model_name_or_path", "m", "--use_cpu"]
    assert parse(needed)[0].uncovered == "hard"
    assert parse([*needed, "--uncovered", "scale"])[0].uncovered == "scale"
    assert parse([*needed, "--preset", "uld_paper"])[0].uncovered == "none"
    assert parse([*needed, "--preset", "uld_paper", "--loss", "ce"])[0].uncovered == "hard"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"loss": "ce", "uncovered": "none"}, "--uncovered none would have no effect: --loss ce "),
        ({"uncovered": "soft"}, "--uncovered is soft, expected hard or none or scale"),
    ],
)
def test_a_way_that_would_do_nothing_or_is_not_known_is_refused(
    tmp_path: Path, flags: dict[str, str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        CachedTeacherConfig(**vars_of(tmp_path) | flags)


def vars_of(out: Path) -> dict[str, Any]:
    made = settings(out)
    return {"output_dir": made.output_dir, "store": made.store, "use_cpu": True}


def test_a_checkpoint_of_another_way_is_refused(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    how = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer_of(student, store, tmp_path, **how).train()
    with pytest.raises(MismatchError, match="--uncovered hard, but this run has scale: it would"):
        trainer_of(student, store, tmp_path, uncovered="scale").train(resume_from_checkpoint=True)
