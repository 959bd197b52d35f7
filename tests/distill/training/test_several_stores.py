"""Several stores, one student: every loss is the mean over the stores that have a row.

The students are float64, so what is left of two runs is rounding of the shares.
"""

import json
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

import distill
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError, MismatchError
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row
from tests.kit.forks import Fork
from tests.kit.students import logged, ragged_rows, trainer_of

WIDTH = len(tiny.byte_bpe())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


def store_of(folder: Path, name: str, tokenizer: Any, *, seed: int, **how: Any) -> FakeStore:
    teacher = tiny.llama(len(tokenizer), seed=seed)
    how = {"logit_std": True, **how}
    rows = how.pop("rows", ragged_rows())
    made = FakeStore.from_teacher(teacher, tokenizer, rows, folder / name, **how)
    spec = replace(made.spec, teacher={"fingerprint": name})
    return replace(made, spec=spec, path=Path(name), provenance={"teacher": name})


@pytest.fixture(scope="module")
def near(folder: Path) -> FakeStore:
    """Of a teacher with the student's tokenizer."""
    return store_of(folder, "near", tiny.byte_bpe(), seed=7)


@pytest.fixture(scope="module")
def far(folder: Path) -> FakeStore:
    """Of a teacher of another tokenizer, with fewer entries."""
    return store_of(folder, "far", tiny.unigram(), seed=8, top_k=5)


@pytest.fixture(scope="module")
def few(folder: Path) -> FakeStore:
    """Likewise, of some of the rows in another order, and one that no other store has."""
    rows = [*ragged_rows()[5:1:-2], text_row(tiny.corpus()[3][:30])]
    return store_of(folder, "few", tiny.unigram(), seed=9, rows=rows)


def text_row(text: str) -> Row:
    return (Segment(text, supervised=True),)


def new_student() -> PreTrainedModel:
    return tiny.llama(WIDTH).double().train()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def trained(stores: Any, out: Path, **how: Any) -> CachedTeacherTrainer:
    several = isinstance(stores, list)
    named = how.pop("named", [f"s{i}" for i in range(len(stores))] if several else "s")
    usual = {"per_device_train_batch_size": 3, "train_sampling_strategy": "random"}
    how = {"named": named, "max_steps": 2, **usual, **how}
    trainer = trainer_of(new_student(), stores, out, **how)
    trainer.train()
    return trainer


def assert_same_run(got: CachedTeacherTrainer, want: CachedTeacherTrainer) -> None:
    torch.testing.assert_close(weights(got.model), weights(want.model), rtol=1e-7, atol=1e-9)
    for mine, theirs in zip(logged(got), logged(want), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if "second" not in name and "wait" not in name:
                assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


# ---- the mean of two equal stores is the run of one ----

HOW: dict[str, dict[str, Any]] = {
    "groups": {"loss": "uld:1.5,alm"},
    "by map": {"loss": "mapped_kl"},
    "a mean over pairs": {"loss": "uld,mapped_kl:2", "uncovered": "none"},
    "scaled": {"loss": "alm", "uncovered": "scale"},
    "sequences": {"loss": "multilevel_ot"},
    "tokens that one side alone has": {"loss": "gold"},
    "by position": {"loss": "uld", "pairing": "position"},
    "at one scale": {"loss": "infifusion"},
    "balanced": {"loss": "mapped_kl", "balance": True},
    "packed": {"loss": "uld", "packing": True},
    "accumulated": {"loss": "uld,mapped_kl", "uncovered": "none", "gradient_accumulation_steps": 2},
    "without a teacher": {"loss": "ce"},
}


@pytest.mark.parametrize("how", HOW)
def test_the_mean_of_two_equal_stores_is_the_run_of_one(
    far: FakeStore, tmp_path: Path, how: str
) -> None:
    one = trained(far, tmp_path / "one", **HOW[how], eval_store=far)
    two = trained([far, far], tmp_path / "two", **HOW[how], eval_store=[far, far])
    assert_same_run(two, one)
    want = one.evaluate()
    for name, value in two.evaluate().items():
        if name.endswith(("loss", "gap")) or "fraction" in name:
            assert value == pytest.approx(want[name], rel=1e-6, abs=1e-7), name


def test_a_store_twice_with_weights_is_that_store_once(far: FakeStore, tmp_path: Path) -> None:
    one = trained(far, tmp_path / "one", loss="uld", uncovered="none")
    for named in (["s:0.3", "s:0.3"], ["s:5", "s:0.5"]):
        two = trained([far, far], tmp_path / named[0], loss="uld", uncovered="none", named=named)
        assert_same_run(two, one)


# ---- two teachers ----


def whole(store: Any, model: PreTrainedModel, **how: Any) -> tuple[float, Tensor, dict[str, Any]]:
    """Loss, gradient and means of the terms of all rows at once."""
    data = distill.batches(store, tiny.byte_bpe(), model=model, batch_size=16, **how)
    (batch,) = list(data)
    model.zero_grad()
    loss = data.loss(model, batch)
    loss.backward()
    counts = data.counts([batch]).tolist()
    return loss.item(), gradient(model), {"terms": data.terms(model, batch), "counts": counts}


@pytest.mark.parametrize("loss", ["uld", "mapped_kl", "multilevel_ot", "infifusion"])
def test_a_loss_is_the_weighted_mean_over_teachers(
    near: FakeStore, far: FakeStore, loss: str, tmp_path: Path
) -> None:
    """With cross-entropy in the place of labels that one of them does not cover."""
    model = new_student()
    a, slope_a, _ = whole(near, model, loss=loss)
    b, slope_b, _ = whole(far, model, loss=loss)
    trainer = trained(
        [near, far], tmp_path, loss=loss, named=["near:1", "far:3"], max_steps=1,
        per_device_train_batch_size=8, train_sampling_strategy="sequential", learning_rate=1.0,
    )  # fmt: skip
    assert logged(trainer)[0]["loss"] == pytest.approx(a / 4 + 3 * b / 4, rel=1e-6)
    moved = weights(new_student()) - weights(trainer.model)
    # A Llama's norm passes gradients on in float32.
    torch.testing.assert_close(moved, slope_a / 4 + 3 * slope_b / 4, rtol=1e-6, atol=1e-7)


def test_a_mean_over_pairs_is_over_the_pairs_of_all_teachers(
    near: FakeStore, far: FakeStore
) -> None:
    model = new_student()
    how: dict[str, Any] = {"loss": "mapped_kl", "uncovered": "none", "ce_weight": 0.0}
    a, _, of_a = whole(near, model, **how)
    b, _, of_b = whole(far, model, **how)
    both, _, of_both = whole([near, far], model, **how)
    (_, m), (_, n) = of_a["counts"], of_b["counts"]
    assert m != n
    assert both == pytest.approx((m * a + n * b) / (m + n), rel=1e-6)
    assert of_both["counts"][1] == pytest.approx((m + n) / 2)
    assert of_both["terms"]["mapped_kl"] == pytest.approx(both, rel=1e-6)


def test_a_row_that_one_store_has_is_learnt_from_that_one(far: FakeStore, few: FakeStore) -> None:
    """Row by row: the loss of a row is of the stores that have it, and each row is there once."""
    model = new_student()
    data = distill.batches([far, few], tiny.byte_bpe(), model=model, loss="uld", batch_size=1)
    alone = [
        distill.batches(store, tiny.byte_bpe(), model=model, loss="uld", batch_size=1)
        for store in (far, few)
    ]
    values = []
    for each in alone:
        collated = (each.collate([each.dataset[i]]) for i in range(len(each.dataset)))
        values.append([each.loss(model, batch).item() for batch in collated])
    both = [
        data.loss(model, data.collate([data.dataset[i]])).item() for i in range(len(data.dataset))
    ]
    shared = {5: 0, 3: 1}  # rows of `far`, and the same text's row in `few`
    want = [(v + values[1][shared[i]]) / 2 if i in shared else v for i, v in enumerate(values[0])]
    assert both == pytest.approx([*want, values[1][2]], rel=1e-6)


def test_how_much_of_each_store_is_used_is_said(
    far: FakeStore, few: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(new_student(), [far, few], tmp_path, named=["far", "few"], loss="uld")
    assert (
        "2 stores, 9 sequences:\n"
        "    far: 8 sequences, 6 that no other has\n"
        "    few: 3 sequences, 1 that no other has"
    ) in caplog.text
    assert len(trainer.data) == 9
    assert set(trainer.self_test) == {"records", "records of store 1"}


def test_rows_are_those_of_the_first_store(far: FakeStore, few: FakeStore) -> None:
    for stores, rows, found in (([far, few], "2:6", [2, 3, 4, 5]), ([few, far], "1:3", [1, 2])):
        data = distill.batches(stores, tiny.byte_bpe(), loss="uld", rows=rows)
        dataset = data.dataset
        assert [dataset[i].row for i in range(len(dataset))] == found
        assert (dataset.share_ES > 0).sum() > len(found)  # type: ignore[union-attr]


def test_fewer_entries_are_asked_of_the_store_that_has_more(
    near: FakeStore, far: FakeStore
) -> None:
    data = distill.batches([near, far], tiny.byte_bpe(), loss="uld", train_top_k=5)
    assert [part.top_k for part in data.dataset.parts] == [5, None]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="--train_top_k 8 would have no effect: near holds 8"):
        distill.batches([near, far], tiny.byte_bpe(), loss="uld", train_top_k=8)


# ---- processes and checkpoints ----


def of_rank(stores: list[FakeStore], folder: Path) -> None:
    run = trained(
        stores, folder / "run", loss="uld,mapped_kl", uncovered="none", max_steps=2,
        per_device_train_batch_size=2,
    )  # fmt: skip
    torch.save(weights(run.model), folder / f"{os.environ['RANK']}.pt")
    run.end()


def test_two_processes_train_as_one(far: FakeStore, few: FakeStore, tmp_path: Path) -> None:
    """Their counts are of both, of stores that have not the same rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        Fork(lambda: of_rank([far, few], tmp_path), shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    for each in both:
        each.result()
    one = trained(
        [far, few], tmp_path / "one", loss="uld,mapped_kl", uncovered="none", max_steps=2,
        per_device_train_batch_size=4,
    )  # fmt: skip
    assert not distributed.is_initialized()
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(got, weights(one.model), rtol=1e-6, atol=1e-9)


def test_a_run_goes_on_with_the_same_stores_alone(
    far: FakeStore, few: FakeStore, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"loss": "uld", "save_strategy": "steps", "save_steps": 2}
    run = trained([far, few], tmp_path / "a", max_steps=4, **how)
    begun = str(tmp_path / "a" / "checkpoint-2")
    again = trainer_of(
        new_student(), [far, few], tmp_path / "b", named=["s0", "s1"], max_steps=4,
        per_device_train_batch_size=3, train_sampling_strategy="random", **how,
    )  # fmt: skip
    again.train(resume_from_checkpoint=begun)
    torch.testing.assert_close(weights(again.model), weights(run.model), rtol=1e-9, atol=1e-12)
    for stores, named, message in (
        ([few, far], ["s1", "s0"], "trained on store"),
        ([far, few], ["s0:2", "s1"], r"weights of stores \[1.0, 1.0\], but this run has \[2.0, 1"),
        (far, "s0", "trained on store"),
    ):
        other = trainer_of(
            new_student(), stores, tmp_path / "c", named=named, max_steps=4,
            per_device_train_batch_size=3, train_sampling_strategy="random", **how,
        )  # fmt: skip
        with pytest.raises(MismatchError, match=message):
            other.train(resume_from_checkpoint=begun)
    facts = json.loads((tmp_path / "a" / "checkpoint-2" / "distill.json").read_text())
    assert facts["settings"]["weights of stores"] == [1.0, 1.0]


# ---- evaluation ----


def test_held_out_text_of_one_teacher_is_compared_with_that_one(
    near: FakeStore, far: FakeStore, tmp_path: Path
) -> None:
    """Whichever place its training store has."""
    trainer = trainer_of(
        new_student(), [near, far], tmp_path, named=["n", "f"], loss="uld", eval_store=far
    )
    alone = trainer_of(new_student(), far, tmp_path / "a", named="f", loss="uld", eval_store=far)
    got, want = trainer.evaluate(), alone.evaluate()
    for name in ("eval_loss", "eval_uld_loss", "eval_kd_gap", "eval_covered_fraction"):
        assert got[name] == pytest.approx(want[name], rel=1e-6)


def test_held_out_text_of_another_teacher_is_refused(
    near: FakeStore, far: FakeStore, few: FakeStore, tmp_path: Path
) -> None:
    for eval_store, error, message in (
        (few, MismatchError, "few: its teacher is few"),
        ([far, near, far], InputError, "--eval_store names 3 stores, but --store 2"),
    ):
        with pytest.raises(error, match=message):
            trainer_of(
                new_student(), [near, far], tmp_path, named=["n", "f"], loss="uld",
                eval_store=eval_store,
            )  # fmt: skip


# ---- what is refused ----


def test_stores_without_a_row_in_common_are_refused(
    near: FakeStore, far: FakeStore, folder: Path
) -> None:
    other = store_of(folder, "other", tiny.unigram(), seed=9, rows=[text_row("nobody has this")])
    says = (
        "other: none of its 1 sequence has a text that is also in near, far, so the teachers have "
        "nothing in common to teach."
    )
    with pytest.raises(MismatchError, match=re.escape(says)):
        distill.batches([near, far, other], tiny.byte_bpe(), loss="uld")


def test_a_loss_of_one_teacher_is_refused_for_two(
    far: FakeStore, near: FakeStore, folder: Path
) -> None:
    third = store_of(folder, "third", tiny.unigram(150), seed=9)
    for stores in ([far, third], [far, near]):
        with pytest.raises(InputError, match="--loss gold: reads the student's most probable"):
            distill.batches(stores, tiny.byte_bpe(), loss="gold")


def test_each_store_must_have_what_a_loss_needs(near: FakeStore, folder: Path) -> None:
    lacking = store_of(folder, "lacking", tiny.byte_bpe(), seed=9, logit_std=False)
    with pytest.raises(MismatchError, match=r"^lacking: captured without --logit-std"):
        distill.batches([near, lacking], tiny.byte_bpe(), loss="multilevel_ot")


def test_a_store_that_is_read_otherwise_is_refused_or_counted(
    far: FakeStore, folder: Path, tmp_path: Path
) -> None:
    """By a student that is made to read the texts of one store with another token at their end."""
    other = store_of(folder, "odd", tiny.unigram(), seed=9)
    data = distill.batches([far, other], tiny.byte_bpe(), loss="uld").dataset
    part = data.parts[1]  # type: ignore[union-attr]
    plain = part._example
    part._example = lambda *sides: _odd(plain(*sides), every=1)
    with pytest.raises(MismatchError, match="odd: the student reads the same texts otherwise than"):
        data.check_read_alike()  # type: ignore[union-attr]
    part._example = lambda *sides: _odd(plain(*sides), every=2)
    data.check_read_alike()  # type: ignore[union-attr]
    assert [data[i].read_otherwise for i in range(4)] == [1, 0, 1, 0]
    assert data[0].share.tolist() == [1, 0]  # type: ignore[union-attr]
    assert data[1].share.tolist() == [0.5, 0.5]  # type: ignore[union-attr]
    assert set(data[0].teacher) == {"uld@0"}


def _odd(example: Any, every: int) -> Any:
    if example.row % every:
        return example
    return example._replace(token_ids=example.token_ids + 1)
