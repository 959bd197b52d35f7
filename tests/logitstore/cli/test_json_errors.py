"""With `--json` stdout has one JSON object whatever happens; an error's says its kind."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from logitstore.capture import job
from logitstore.console.signals import Stopped
from tests.kit.made_stores import put
from tests.logitstore.cli.conftest import Typed


@pytest.fixture
def store(tmp_path: Path) -> Path:
    put(tmp_path / "s")
    return tmp_path / "s"


def failed(typed: Typed, *words: object, status: int = 2) -> dict[str, Any]:
    """The object under `error`, which is all there is on stdout; the message is on stderr too."""
    code, out, err = typed(*words, "--json")
    assert code == status
    found: dict[str, Any] = json.loads(out)
    assert list(found) == ["error"]
    assert str(found["error"]["message"]) in err
    again, nothing, same = typed(*words)
    assert (again, nothing, same) == (code, "", err)
    return dict(found["error"])


def test_kinds_of_a_store_that_cannot_be_read(typed: Typed, store: Path, tmp_path: Path) -> None:
    newer, unfinished, missing, cut = (
        Path(shutil.copytree(store, tmp_path / name))
        for name in ("newer", "unfinished", "missing", "cut")
    )
    body = json.loads((newer / "store.json").read_text()) | {"version": 9}
    (newer / "store.json").write_text(json.dumps(body))
    (unfinished / "DONE").unlink()
    (missing / "shards" / "00001.zarr.zip").unlink()
    shard = cut / "shards" / "00000.zarr.zip"
    shard.write_bytes(shard.read_bytes()[:-100])
    for path, kind in ((tmp_path, "not-a-store"), (newer, "format"), (unfinished, "incomplete")):
        found = failed(typed, "logitstore", "show", path, 0)
        assert (found["kind"], set(found)) == (kind, {"kind", "message"})
    found = failed(typed, "logitstore", "info", missing)
    assert (found["kind"], found["rows"]) == ("missing-file", [3, 6])
    assert found["path"] == str(missing / "shards" / "00001.zarr.zip")
    found = failed(typed, "logitstore", "show", cut, 0)
    assert (found["kind"], found["path"], found["rows"]) == ("corrupt", str(shard), [0, 2])


def test_verify_says_the_kind_of_each_damage(typed: Typed, store: Path) -> None:
    (store / "shards" / "00001.zarr.zip").unlink()
    name = sorted(p.name for p in (store / "tokenizer").iterdir())[0]
    (store / "tokenizer" / name).unlink()
    shard = store / "shards" / "00002.zarr.zip"
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, _ = typed("logitstore", "verify", store, "--json")
    damaged = json.loads(out)["damaged"]
    assert code == 1
    assert all(set(each) == {"file", "rows", "reason", "kind"} for each in damaged)
    assert {(each["file"], each["kind"]) for each in damaged} == {
        (f"tokenizer/{name}", "missing-file"),
        ("shards/00001.zarr.zip", "missing-file"),
        ("shards/00002.zarr.zip", "corrupt"),
    }


@pytest.mark.parametrize("program", ["logitstore", "distill"])
def test_a_command_line_that_cannot_be_understood(program: str, typed: Typed) -> None:
    command = "info" if program == "logitstore" else "coverage"
    assert failed(typed, program, command, "s", "--nonsense")["kind"] == "usage"
    assert failed(typed, program, command)["kind"] == "usage"


def test_distill_says_the_same_kinds(typed: Typed, tmp_path: Path) -> None:
    assert failed(typed, "distill", "coverage", tmp_path, "student")["kind"] == "not-a-store"
    found = failed(typed, "distill", "evaluate", "student", "--metrics", "charm")
    assert found["kind"] == "input"


def test_training_says_the_same_kinds(typed: Typed, tmp_path: Path) -> None:
    out = ("--output_dir", tmp_path / "out")
    words = ("distill", "train", "--model_name_or_path", "s", *out, "--report_to", "none")
    for more, kind in (
        (("--store", tmp_path), "not-a-store"),
        (("--store", tmp_path, "--loss", "kl"), "input"),
        ((), "input"),
        (("--store", tmp_path, "--nonsense", "1"), "usage"),
        (("--store", tmp_path, "--learning_rate", "fast"), "usage"),
    ):
        assert failed(typed, *words, *more)["kind"] == kind
    (tmp_path / "run.yaml").write_text("json: true\n")
    found = failed(typed, *words, "--config", tmp_path / "run.yaml")
    assert "no key is called json" in found["message"]


def test_an_error_without_json_leaves_stdout_empty(typed: Typed, tmp_path: Path) -> None:
    code, out, err = typed("logitstore", "info", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_stopped_capture_says_so(
    number: int, status: int, typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise Stopped(number, "stopped after a whole shard")

    monkeypatch.setattr(job, "run_capture", stops)
    words = ("logitstore", "capture", "teacher", "data", "--out", tmp_path / "s")
    found = failed(typed, *words, status=status)
    assert found == {"kind": "stopped", "message": "stopped after a whole shard"}
    assert "error" not in typed(*words)[2]


def test_a_full_disk_is_told_from_other_failures(tmp_path: Path) -> None:
    from logitstore.storage.commit import explain

    kinds = {
        number: explain(OSError(number, os.strerror(number)), tmp_path).kind
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO)
    }
    assert kinds == {
        errno.ENOSPC: "disk-full",
        errno.EDQUOT: "disk-full",
        errno.EACCES: "storage",
        errno.EIO: "storage",
    }


def test_no_memory_is_an_error_in_a_line(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(*_: object, **__: object) -> None:
        raise MemoryError("no memory for 5 bytes")

    monkeypatch.setattr("logitstore.checking.verify.verify_store", verify)
    status, out, err = typed("logitstore", "verify", tmp_path, "--json")
    assert status == 2
    assert json.loads(out)["error"]["kind"] == "out-of-memory"
    assert err.startswith("error: there is not enough memory (no memory for 5 bytes). Free memory")
