"""A run may ask for some rows, entries or tokens of a store: as if the store held no others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from distill.data.records_asked import parse_filter
from distill.training.kd_schedule import parse_schedule
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError, MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import logged, ragged_rows, trainer_of

WIDTH = len(tiny.byte_bpe())


def store_of(folder: Path, *, own: bool = False, **how: Any) -> FakeStore:
    tokenizer = tiny.byte_bpe() if own else tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    return FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), folder, **how)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    return store_of(tmp_path_factory.mktemp("teacher"), top_k=16)


@pytest.fixture
def student() -> PreTrainedModel:
    return tiny.llama(WIDTH).double()


def batch_of(trainer: CachedTeacherTrainer) -> dict[str, Any]:
    found: dict[str, Any] = trainer.data_collator(
        trainer.data.__getitems__(range(len(trainer.data)))
    )
    return found


# ---- fewer entries ----


@pytest.mark.parametrize("loss", ["uld", "mapped_kl"])
def test_a_cut_store_is_one_that_was_captured_with_fewer_entries(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, loss: str
) -> None:
    few = store_of(tmp_path / "few", top_k=4)
    want = batch_of(trainer_of(student, few, tmp_path, loss=loss))
    got = batch_of(trainer_of(student, store, tmp_path, loss=loss, train_top_k=4))
    assert got["teacher"][loss].keys() == want["teacher"][loss].keys()
    for name, array in want["teacher"][loss].items():
        torch.testing.assert_close(got["teacher"][loss][name], array, rtol=1e-5, atol=1e-6)


def test_a_cut_keeps_one_as_the_sum_and_leaves_short_records_alone(store: FakeStore) -> None:
    records = store.records[4]
    cut = records.cut(5)
    assert cut.entry_count.tolist() == [5] * len(records)
    mass = np.exp(cut.entry_logprobs.astype(np.float64)).reshape(-1, 5).sum(1)
    np.testing.assert_allclose(mass + np.exp(cut.tail_logmass.astype(np.float64)), 1, atol=1e-6)
    assert records.cut(16) is records
    assert cut.cut(9).tail_logmass is cut.tail_logmass


def test_a_held_out_store_is_read_whole(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    how = {"train_top_k": 2, "token_filter": "entropy>1", "rows": "0:4", "eval_store": store}
    found = trainer_of(student, store, tmp_path, **how).evaluate()
    whole = trainer_of(student, store, tmp_path, eval_store=store).evaluate()
    assert found["eval_uld_loss"] == whole["eval_uld_loss"]


# ---- some tokens ----


@pytest.mark.parametrize("written", ["entropy>{e}", "surprise<{s}", "entropy<{e},surprise>{s}"])
@pytest.mark.parametrize("loss", ["mapped_kl", "alm", "uld"])
def test_only_pairs_of_such_tokens_are_compared(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, loss: str, written: str
) -> None:
    middle = {
        "e": float(np.median(np.concatenate([each.entropy for each in store.records]))),
        "s": float(-np.median(np.concatenate([each.token_logprob for each in store.records]))),
    }
    written = written.format(**middle)
    every = trainer_of(student, store, tmp_path, loss=loss)
    some = trainer_of(student, store, tmp_path, loss=loss, token_filter=written)
    kept = 0
    for i in range(8):
        asked = every.data.asked(i, loss)
        assert asked is not None
        records, want = asked.records, []
        for t, t_stop, _, label in asked.pairs.table.tolist():
            values = {
                "entropy": float(records.entropy[t_stop - 1]),
                "surprise": -sum(float(records.token_logprob[r]) for r in range(t, t_stop)),
            }
            if all(
                values[name] > nats if sign == ">" else values[name] < nats
                for name, sign, nats in parse_filter(written)
            ):
                want.append(label - 1)
        assert some.data[i].teacher[loss]["index"].tolist() == want
        kept += len(want)
    assert 0 < kept < int(batch_of(every)["teacher"][loss]["index"].shape[0])
    covered = int(batch_of(some)["aligned"].sum()), int(batch_of(every)["aligned"].sum())
    assert covered[0] < covered[1]


def test_what_an_import_lacks_cannot_filter(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    spec = type(store.spec)(**vars(store.spec) | {"missing": ("entropy",)})
    blind = FakeStore(**vars(store) | {"spec": spec})
    with pytest.raises(MismatchError, match="without the entropy of every token, which --token_f"):
        trainer_of(student, blind, tmp_path, token_filter="entropy>1")


# ---- some rows ----


def test_a_run_of_some_rows_reads_no_others_and_a_checkpoint_knows_which(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    (tmp_path / "rows.txt").write_text("6\n2\n5\n")
    trainer = trainer_of(student, store, tmp_path / "o", rows=str(tmp_path / "rows.txt"))
    assert sorted(batch_of(trainer)["row"].tolist()) == [2, 5, 6]
    trainer.train()
    others = trainer_of(student, store, tmp_path / "p", rows="3:6")
    named = [each._origin(each.args)["settings"]["rows"] for each in (trainer, others)]
    assert named[0] != named[1]
    whole = trainer_of(student, store, tmp_path / "q")
    assert "rows" not in whole._origin(whole.args)["settings"]


# ---- a weight that changes ----


def test_the_weight_goes_from_the_first_step_to_the_last(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    how = {"kd_schedule": "linear:0.25..1.75", "max_steps": 4}
    trainer = trainer_of(student, store, tmp_path, eval_store=store, **how)
    trainer.train()
    factors = [entry["kd_factor"] for entry in logged(trainer)]
    assert factors == pytest.approx([0.25, 0.75, 1.25, 1.75])
    for entry, factor in zip(logged(trainer), factors, strict=True):
        want = entry["ce_loss"] + factor * entry["kd_loss"]
        assert entry["loss"] == pytest.approx(want, rel=1e-6)
    evaluated = trainer.evaluate()
    total = evaluated["eval_ce_loss"] + evaluated["eval_kd_loss"]
    assert evaluated["eval_loss"] == pytest.approx(total)


def test_a_constant_schedule_is_a_weight(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    weights = []
    for i, how in enumerate(
        ({"loss": "uld:0.5"}, {"loss": "uld:1", "kd_schedule": "cosine:0.5..0.5"})
    ):
        trainer = trainer_of(tiny.llama(WIDTH).double(), store, tmp_path / str(i), **how)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)


def test_a_cosine_begins_and_ends_flat() -> None:
    schedule = parse_schedule("cosine:1..0")
    assert [schedule.at(i, 5) for i in range(5)] == pytest.approx(
        [1, 0.8535534, 0.5, 0.1464466, 0], abs=1e-6
    )
    assert schedule.at(0, 1) == 1


# ---- what is refused ----

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train_top_k": 16}, "--train_top_k 16 would have no effect: fake-store holds 16 entries"),
    ({"train_top_k": 0}, "--train_top_k is 0, expected at least 1"),
    ({"train_top_k": 4, "loss": "alm"}, "would have no effect: --loss alm compares no entries"),
    ({"token_filter": "wisdom>1"}, "'wisdom>1' is no condition. Write entropy>2"),
    ({"token_filter": "entropy=1"}, "'entropy=1' is no condition"),
    ({"token_filter": "entropy>nan"}, "is no condition"),
    ({"token_filter": "entropy>1", "loss": "ce"}, "would have no effect: --loss ce compares noth"),
    ({"kd_schedule": "linear:1..0", "loss": "ce"}, "would have no effect: --loss ce compares noth"),
    ({"kd_schedule": "steps:1..0"}, "--kd_schedule steps:1..0: expected linear or cosine and two"),
    ({"kd_schedule": "linear:0..0"}, "and not both 0"),
    ({"kd_schedule": "linear:-1..1"}, "two numbers that are not negative"),
    ({"rows": "0:9"}, "--rows 0:9: ends at 9, but fake-store has 8 rows"),
    ({"rows": "nowhere.txt"}, "neither a file nor a range"),
]


@pytest.mark.parametrize(("how", "message"), REFUSED)
def test_what_would_do_nothing_is_refused(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trainer_of(student, store, tmp_path, **how)


def test_draws_are_from_beyond_what_was_stored(student: PreTrainedModel, tmp_path: Path) -> None:
    drawn = store_of(tmp_path / "t", own=True, draws=20)
    with pytest.raises(InputError, match="sampled_kl reads draws from beyond the 8 entries"):
        trainer_of(student, drawn, tmp_path, loss="sampled_kl,tail_kl", train_top_k=4)
