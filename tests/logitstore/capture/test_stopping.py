"""SIGINT and SIGTERM: end at the shard, commit what is in flight, say how to go on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import logitstore
from logitstore.capture.passes.teacher_pass import TeacherPass
from logitstore.checking.verify import verify_store
from logitstore.console.signals import Stopped, stopper
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit.rows import texts_file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("stopping") / "rows.jsonl", tiny.corpus() * 4)


# Batches are counted, and those of the test before the capture are not the capture's.
SETTINGS: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 400, "self_test": False}


@pytest.mark.slow  # each starts the command three times
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_at_the_shard_with_the_status_of_the_signal(
    teacher: Path, data: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "s"
    command = [sys.executable, "-m", "logitstore", "capture", str(teacher), str(data)]
    command += ["--out", str(out), "--top-k", "8", "--shard-text-bytes", "400"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "shards" / "00000.zarr.zip").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.0005)
    process.send_signal(number)
    printed, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert printed == ""
    assert "Traceback" not in err
    assert f"{number.name}: stopping after this shard. Repeat it to exit immediately." in err
    there = len(list((out / "shards").glob("*.zip")))
    assert f"{there} of 24 shards there, each of them whole. Run the same command again" in err
    assert 1 <= there < 24
    assert not list((out / "shards").glob(".tmp-*"))
    assert verify_store(out, allow_partial=True, deep=True).damaged == []
    subprocess.run(command, check=True, capture_output=True)
    whole = logitstore.capture(teacher, str(data), tmp_path / "whole", **SETTINGS)
    assert {k: v for k, v in tree(out).items() if "shards" in k} == {
        k: v for k, v in tree(whole.path).items() if "shards" in k
    }


def signalled(
    monkeypatch: pytest.MonkeyPatch, at_batch: int, times: int, number: int = signal.SIGTERM
) -> list[int]:
    """The process gets signals as it reads a batch; returns a list that counts the batches."""
    batches: list[int] = []
    read = TeacherPass.forward

    def spy(self: TeacherPass, batch: Any) -> Any:
        batches.append(len(batch))
        if len(batches) == at_batch:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return read(self, batch)

    monkeypatch.setattr(TeacherPass, "forward", spy)
    return batches


def test_the_shard_in_hand_is_finished_and_committed(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = signalled(monkeypatch, at_batch=5, times=1)
    log = tmp_path / "log"
    with pytest.raises(Stopped, match=r"stopped after a whole shard\. .*: 5 of 24 shards") as e:
        logitstore.capture(teacher, str(data), tmp_path / "s", **SETTINGS, log_json=log)
    assert e.value.exit_status == 143
    events = [json.loads(line) for line in log.read_text().splitlines()]
    shards = [x["shard"] for x in events if x["event"] == "shard"]
    assert shards == [0, 1, 2, 3, 4]
    assert events[-1]["event"] == "stopped"
    assert len(batches) == 5  # a shard is one batch here


def test_a_second_signal_ends_at_once_and_costs_the_shard_in_hand(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = signalled(monkeypatch, at_batch=5, times=2)
    with pytest.raises(Stopped, match=r"stopped immediately by SIGTERM\. .*: 4 of 24 shards there"):
        logitstore.capture(teacher, str(data), tmp_path / "s", **SETTINGS)
    assert len(batches) == 5
    assert verify_store(tmp_path / "s", allow_partial=True, deep=True).damaged == []
    monkeypatch.undo()
    store = logitstore.capture(teacher, str(data), tmp_path / "s", **SETTINGS)
    assert store.is_complete


def test_a_signal_before_the_first_shard_ends_at_once(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr("logitstore.capture.passes.teacher_pass.load_model", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"stopped immediately by SIGINT\. .*: 0 of 24"):
        logitstore.capture(teacher, str(data), tmp_path / "s", **SETTINGS)


def test_handlers_are_put_back_and_other_threads_left_alone() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stopper():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with stopper() as stop:
                assert stop.asked is None
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
