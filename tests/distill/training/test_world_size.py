"""One process or two, and a run that goes on with another number of them: the same rows and steps.

The students are float64, so what is left is rounding of the logged float32.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.curves import Record, assert_same, of_log
from tests.kit.paths import ROOT
from tests.kit.students import logged, ragged_rows
from tests.kit.two_ranks import METHODS, ONE, SAVED_STEP, Noting, prepared, run_both

KEYS = ("loss", "grad_norm", "ce_loss", "kd_loss", "kd_gap", "covered_fraction")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), folder, rounded=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs and their checkpoints are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(store: FakeStore, folder: Path) -> Noting:
    """The run of one process, with a checkpoint."""
    trainer = prepared(store, folder / "one", eval_store=store, **ONE)
    trainer.train()
    return trainer


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
Ranks = dict[str, list[dict[str, Any]]]


def launched(folder: Path, store: FakeStore, *flags: str) -> Ranks:
    """What each of two processes of torchrun found, whole and resumed from one's checkpoint."""
    (folder / "store").write_bytes(pickle.dumps(store))
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "tests.kit.two_ranks", str(folder), *flags],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return found_in(folder)


def found_in(folder: Path) -> Ranks:
    """What both processes have written."""
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        for name in ("two", "resumed")
    }


@pytest.fixture(scope="module")
def two(store: FakeStore, folder: Path, one: Noting) -> Ranks:
    """The same of two processes that this one starts."""
    (folder / "store").write_bytes(pickle.dumps(store))
    run_both(folder)
    return found_in(folder)


def in_order(ranks: list[dict[str, Any]]) -> list[int]:
    """Rows as the run read them: the processes take micro-batches in turn."""
    pairs = zip(*(found["rows"] for found in ranks), strict=True)
    return [row for pair in pairs for rows in pair for row in rows]


def rows_of(trainer: Noting) -> list[int]:
    return [row for rows in trainer.rows for row in rows]


def test_two_processes_make_the_run_of_one(
    one: Noting, two: Ranks, record_property: Record
) -> None:
    found = two["two"]
    assert in_order(found) == rows_of(one)
    got, want = of_log(found[0]["logged"], KEYS), of_log(logged(one), KEYS)
    assert_same(record_property, "2 processes = 1", got, want)
    for key, value in one.evaluate().items():
        if key.endswith(("loss", "gap", "fraction")):
            assert found[0]["eval"][key] == pytest.approx(value, rel=1e-6)


def test_two_processes_go_on_where_one_was(
    one: Noting, two: Ranks, record_property: Record
) -> None:
    found = two["resumed"]
    assert in_order(found) == rows_of(one)[4 * SAVED_STEP :]
    got, want = of_log(found[0]["logged"], KEYS), of_log(logged(one), KEYS)
    assert_same(record_property, "1 process, resumed by 2 = 1", got, want)


def test_one_process_goes_on_where_two_were(
    store: FakeStore,
    folder: Path,
    one: Noting,
    two: Ranks,
    tmp_path: Path,
    record_property: Record,
) -> None:
    again = prepared(store, tmp_path, **ONE)
    again.train(resume_from_checkpoint=str(folder / "two" / f"checkpoint-{SAVED_STEP}"))
    assert rows_of(again) == rows_of(one)[4 * SAVED_STEP :]
    got, want = of_log(logged(again), KEYS), of_log(logged(one), KEYS)
    assert_same(record_property, "2 processes, resumed by 1 = 1", got, want)


@pytest.mark.slow
def test_two_processes_warp_and_weigh_as_one_does(tmp_path: Path, record_property: Record) -> None:
    """Of losses whose weights are known only once the student has been asked."""
    pytest.importorskip("rapidfuzz")
    teacher, how = tiny.llama(len(tiny.unigram()), seed=7), ONE | METHODS
    store = FakeStore.from_teacher(
        teacher, tiny.unigram(), ragged_rows(), tmp_path / "teacher", logit_std=True
    )
    one = prepared(store, tmp_path / "one", eval_store=store, **how)
    one.train()
    keys = ("loss", "grad_norm", "ce_loss", "cdm_loss", "infifusion_loss", "mapped_kl_loss")
    found, want = launched(tmp_path, store, "--methods"), of_log(logged(one), keys)
    for name, what in (("two", "methods on 2 processes = 1"), ("resumed", "methods, resumed = 1")):
        assert_same(record_property, what, of_log(found[name][0]["logged"], keys), want)


@pytest.mark.slow
def test_two_processes_with_packed_rows_grouped_by_length_make_the_run_of_one(
    tmp_path: Path, record_property: Record
) -> None:
    """Also where they go on from a checkpoint of one that did not pack."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    rows = ragged_rows() * 4
    store = FakeStore.from_teacher(teacher, tokenizer, rows, tmp_path / "teacher", rounded=True)
    how = ONE | {"train_sampling_strategy": "group_by_length"}
    one = prepared(store, tmp_path / "one", eval_store=store, **how)
    one.train()
    found, want = launched(tmp_path, store, "--packed"), of_log(logged(one), KEYS)
    assert in_order(found["two"]) == rows_of(one)
    assert in_order(found["resumed"]) == rows_of(one)[4 * SAVED_STEP :]
    for name, what in (("two", "packed on 2 processes = 1"), ("resumed", "packed, resumed = 1")):
        assert_same(record_property, what, of_log(found[name][0]["logged"], KEYS), want)


@pytest.mark.slow
def test_two_processes_with_shards_of_the_student_make_the_run_of_one(
    store: FakeStore, one: Noting, tmp_path: Path, record_property: Record
) -> None:
    """`--fsdp`: `fully_shard` over two gloo ranks, each with half of every weight."""
    found = launched(tmp_path, store, "--shards")
    assert in_order(found["two"]) == rows_of(one)
    assert in_order(found["resumed"]) == rows_of(one)[4 * SAVED_STEP :]
    want = of_log(logged(one), KEYS)
    for name, what in (("two", "shards on 2 processes = 1"), ("resumed", "shards, resumed = 1")):
        assert_same(record_property, what, of_log(found[name][0]["logged"], KEYS), want)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "two", dtype=torch.float64)
    torch.testing.assert_close(saved.state_dict(), one.model.state_dict(), rtol=1e-5, atol=1e-6)
