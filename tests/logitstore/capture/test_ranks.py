"""Ranks: whole shards each, the bytes of one process, one seal, and a wait that ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import logitstore
from logitstore.capture.sharing.heartbeat import Heartbeat, activity, wait_until
from logitstore.capture.sharing.sharing import ByRank
from logitstore.checking.verify import verify_store
from logitstore.console.launcher import Ranks, find_ranks
from logitstore.errors import IncompleteStoreError, InputError
from logitstore.storage.paths import store_path
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit.paths import ROOT
from tests.kit.rows import texts_file

# `accelerate launch --cpu` starts one process whatever is asked for (two need mpirun), so this is
# the launcher of machines with GPUs, on one without.
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("ranks") / "rows.jsonl", tiny.corpus() * 2)


def arguments(teacher: Path, data: Path, out: Path) -> list[str]:
    place = ["capture", str(teacher), str(data), "--out", str(out)]
    return [*place, "--top-k", "8", "--shard-text-bytes", "400"]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(command: list[str], **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def wanted(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that one process writes."""
    out = tmp_path_factory.mktemp("ranks") / "one"
    code, _, err = ended(start(["-m", "logitstore", *arguments(teacher, data, out)]))
    assert code == 0, err
    return tree(out)


def committed_by(out: Path) -> Counter[int]:
    """Shards by process, as the journal has it."""
    lines = map(json.loads, out.with_name(f"{out.name}.journal.jsonl").read_text().splitlines())
    return Counter(line["process"] for line in lines if line.get("committed"))


@pytest.mark.slow  # two processes that load torch
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_of_a_launcher_write_the_store_of_one_process(
    teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path, launcher: str
) -> None:
    out = tmp_path / "two"
    job = [*LAUNCHERS[launcher], "-m", "logitstore", *arguments(teacher, data, out), "--json"]
    code, stdout, err = ended(start(job))
    assert code == 0, err[-3000:]
    assert tree(out) == wanted
    shards = committed_by(out)
    assert len(shards) == 2
    assert min(shards.values()) >= 1
    assert json.loads(stdout)["complete"]  # once: only rank 0 prints


@pytest.mark.slow  # as the launchers above, with other variables
def test_tasks_of_slurm_write_the_store_of_one_process(
    teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "three"
    ranks = [
        start(
            ["-m", "logitstore", *arguments(teacher, data, out)],
            SLURM_PROCID=str(i),
            SLURM_LOCALID="0",
            SLURM_NTASKS="3",
            SLURM_STEP_NUM_TASKS="3",
        )
        for i in (2, 1, 0)
    ]
    for code, _, err in map(ended, ranks):
        assert code == 0, err
    assert tree(out) == wanted
    assert len(committed_by(out)) == 3


@pytest.mark.slow
def test_a_rank_killed_midway_costs_its_shard_in_hand_and_no_other(
    teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    job = ["-m", "logitstore", *arguments(teacher, data, out)]
    ranks = [start(job, RANK=str(i), WORLD_SIZE="2", LOCAL_RANK=str(i)) for i in range(2)]
    while not (out / "shards" / "00001.zarr.zip").exists():
        assert ranks[1].poll() is None, ranks[1].communicate()
        time.sleep(0.0005)
    ranks[1].send_signal(signal.SIGKILL)
    ranks[1].communicate()
    shards = [name for name in wanted if name.startswith("shards/")]
    own = {name for name in shards if int(name[7:12]) % 2 == 0}
    while any(not (out / name).exists() for name in own):
        assert ranks[0].poll() is None
        time.sleep(0.01)
    assert not (out / "DONE").exists(), "sealed without the shards of the killed rank"
    there = {f"shards/{p.name}" for p in (out / "shards").glob("*.zip")}
    assert own < there < set(shards)
    ranks[0].send_signal(signal.SIGTERM)  # as a launcher does when one of its ranks is gone
    code, _, err = ended(ranks[0])
    assert code == 143, err
    assert verify_store(out, allow_partial=True, deep=True).damaged == []
    kept = {name: (out / name).stat().st_mtime_ns for name in there}

    again = start([*LAUNCHERS["torchrun"], *job])
    assert ended(again)[0] == 0
    assert tree(out) == wanted
    assert {name: (out / name).stat().st_mtime_ns for name in there} == kept


@pytest.mark.slow
def test_another_number_of_ranks_resumes_the_same_store(
    teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "resized"
    logitstore.capture(teacher, str(data), out, top_k=8, shard_text_bytes=400)
    (out / "DONE").unlink()
    for index in (0, 4, 5):
        (out / "shards" / f"{index:05d}.zarr.zip").unlink()
    job = ["-m", "logitstore", *arguments(teacher, data, out)]
    ranks = [start(job, RANK=str(i), WORLD_SIZE="3", LOCAL_RANK="0") for i in range(3)]
    assert [ended(r)[0] for r in ranks] == [0, 0, 0]
    assert {n: b for n, b in tree(out).items() if "shards" in n} == {
        n: b for n, b in wanted.items() if "shards" in n
    }


# ---- who is who ----


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Ranks(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Ranks(3, 8, 1)),
        ({"WORLD_SIZE": "8"}, Ranks(0, 1, 0)),
        (
            {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "2"},
            Ranks(5, 6, 2),
        ),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Ranks(1, 2, 0)),
        # A batch script itself, which srun did not start: one process, whatever was allocated.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "64", "SLURM_LOCALID": "0"}, Ranks(0, 1, 0)),
        # torchrun inside a step: its ranks are what counts.
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            Ranks(1, 2, 0),
        ),
    ],
)
def test_the_launchers_variables_say_which_rank(environment: dict[str, str], found: Ranks) -> None:
    assert find_ranks(environment) == found


@pytest.mark.parametrize("rank", ["2", "-1", "x"])
def test_ranks_that_cannot_be_are_refused(rank: str) -> None:
    with pytest.raises(InputError, match=rf"RANK={rank} WORLD_SIZE=2 .*expected numbers, 0 <= "):
        find_ranks({"RANK": rank, "WORLD_SIZE": "2"})


def test_every_shard_belongs_to_exactly_one_rank() -> None:
    shards = [1, 2, 3, 8, 9, 11]
    own = [Ranks(r, 4).own(shards) for r in range(4)]
    assert sorted(i for part in own for i in part) == shards
    # Whoever is missing what, a shard's owner is the same.
    assert Ranks(1, 4).own([9, 11]) == [9]


# ---- waiting ----


def test_a_wait_ends_when_nothing_moves_and_lasts_while_something_does(tmp_path: Path) -> None:
    began = time.monotonic()
    assert not wait_until(lambda: False, lambda: 0, patience_s=0.2, poll_s=0.01)
    assert 0.2 <= time.monotonic() - began < 2
    looks = iter(range(50))
    left = iter([*[False] * 40, True])
    assert wait_until(lambda: next(left), lambda: next(looks), patience_s=0.05, poll_s=0.01)


def test_a_rank_at_work_is_seen_to_move_and_leaves_nothing(tmp_path: Path) -> None:
    out = store_path(tmp_path)
    shards = store_path(tmp_path / "shards")
    (tmp_path / "shards").mkdir()
    ByRank(out, 3, Ranks()).beat()
    assert activity(shards) == {}, "nobody waits for a process alone"
    (tmp_path / "shards/.tmp-alive-00001").write_text("of a rank that was killed")
    rank = ByRank(out, 3, Ranks(1, 2))
    rank.beat()
    (name,) = activity(shards)
    assert name.startswith(".tmp-")
    before = activity(shards)
    os.utime(tmp_path / "shards" / name, (1, 1))
    assert activity(shards) != before
    rank.stop()
    assert shards.names() == []


def test_a_heartbeat_asks_the_file_system_once_in_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker beats at every row and every token that is generated."""
    beats: list[float] = []
    now = [100.0]
    monkeypatch.setattr("logitstore.capture.sharing.heartbeat.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "logitstore.capture.sharing.heartbeat.os.utime", lambda path: beats.append(now[0])
    )
    heartbeat = Heartbeat.start(store_path(tmp_path / "x"))
    for _ in range(30):
        heartbeat.beat()
        now[0] += 1
    assert beats == [100.0, 110.0, 120.0]


def test_a_rank_whose_peers_are_silent_says_what_is_there_and_how_to_go_on(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitstore.capture.sharing.sharing.PATIENCE_S", 0.3)
    settings: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 400}
    with pytest.raises(
        IncompleteStoreError, match=r"rank 1 of 2 waited to begin the store; is --out"
    ):
        logitstore.capture(teacher, str(data), tmp_path / "s", **settings, ranks=Ranks(1, 2))
    assert not (tmp_path / "s").exists()
    with pytest.raises(
        IncompleteStoreError,
        match=r"rank 0 of 2 waited for .* no other rank gave a heartbeat\. .*"
        r"6 of 12 shards there.* Run the same command again",
    ):
        logitstore.capture(teacher, str(data), tmp_path / "s", **settings, ranks=Ranks(0, 2))
    assert verify_store(tmp_path / "s", allow_partial=True, deep=True).damaged == []
    with pytest.raises(IncompleteStoreError, match=r"rank 1 of 2 waited for rank 0 to seal"):
        logitstore.capture(teacher, str(data), tmp_path / "s", **settings, ranks=Ranks(1, 2))
    store = logitstore.capture(teacher, str(data), tmp_path / "s", **settings, ranks=Ranks(0, 2))
    assert store.is_complete


# ---- training ----


@pytest.mark.slow  # test_trainer.py has it without the command line
def test_training_on_two_processes_is_training_on_one(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    logitstore.capture(teacher, str(data), store, top_k=8)
    student = tiny.save(tmp_path / "student", tiny.llama(320, seed=3), tiny.byte_bpe(320))
    logged = []
    for name, launcher, size in (("one", [], 4), ("two", LAUNCHERS["accelerate"], 2)):
        job = ["-m", "distill", "train", "--model_name_or_path", str(student)]
        job += ["--store", str(store), "--loss", "uld:1.5,mapped_kl:1", "--max_steps", "3"]
        job += ["--output_dir", str(tmp_path / name), "--per_device_train_batch_size", str(size)]
        job += [
            "--logging_steps",
            "1",
            "--learning_rate",
            "1e-3",
            "--use_cpu",
            "--save_strategy=no",
        ]
        code, _, err = ended(start([*launcher, *job]))
        assert code == 0, err[-3000:]
        logged.append(log_of(tmp_path / name))
    for one, two in zip(*logged, strict=True):
        for key in ("loss", "grad_norm", "ce_loss", "uld_loss", "mapped_kl_loss"):
            assert two[key] == pytest.approx(one[key], rel=1e-4), key


def log_of(out: Path) -> list[dict[str, float]]:
    state = json.loads((out / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "grad_norm" in entry]
