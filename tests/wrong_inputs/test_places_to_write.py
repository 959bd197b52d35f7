"""A place that cannot be written to is told before any long work, whatever the command.

Every command stands here once with where its long work begins: the teacher or the student is
loaded, or the first rows are read. A test that is to be told puts an end of the world there.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from logitstore.moving.parquet.export import export_parquet
from logitstore.storage import commit, objects
from logitstore.storage.commit import OsFs
from logitstore.storage.files import Buffer
from logitstore.testing import stores, tiny
from logitstore.testing.buckets import Bucket
from tests.kit.commands import Run, runner
from tests.wrong_inputs.test_wrong_inputs import everything


class LongWorkError(BaseException):
    """Not an Exception, so nothing takes it for a model that cannot be loaded."""


class Command(NamedTuple):
    """A command that writes something, and the function that its long work begins with."""

    typed: str
    begins: str
    option: str = "--out"

    @property
    def program(self) -> str:
        return self.typed.split()[0]


STORES = {
    "capture": Command(
        "logitstore capture teacher rows.jsonl --out OUT", "logitstore.capture.job.prepare"
    ),
    "import a dump": Command(
        "logitstore import dump.jsonl --tokenizer teacher --out OUT",
        "logitstore.moving.dumps.importing.look_through",
    ),
    "import an export": Command(
        "logitstore import export --out OUT", "logitstore.moving.parquet.reimport.read_tokenizer"
    ),
    "merge": Command("logitstore merge a b --out OUT", "logitstore.moving.merge.open_store"),
    "subset": Command(
        "logitstore subset a --rows 0:5 --out OUT", "logitstore.moving.subset._Chosen"
    ),
}
FOLDERS = {
    "export to parquet": Command(
        "logitstore export a --to parquet --no-input-ids --out OUT",
        "logitstore.moving.parquet.export._write_shard",
    ),
    "export to zarr": Command(
        "logitstore export a --to zarr --out OUT", "logitstore.moving.zarr_export._write"
    ),
    "train": Command(
        "distill train --model_name_or_path teacher --store a --use_cpu --output_dir OUT",
        "distill.training.run.make_student",
        "--output_dir",
    ),
}
FILES = {
    "report": Command("logitstore report a -o OUT", "logitstore.inspection.page.browsed", "-o"),
    "compare": Command("distill compare run run2 -o OUT", "distill.report.page.page", "-o"),
}
COMMANDS = STORES | FOLDERS | FILES
EVALUATE = Command(
    "distill evaluate OUT rows.jsonl", "distill.evaluation.evaluate.load_student", "MODEL"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("places")
    (here / "teacher").mkdir()
    tiny.save(here / "teacher", tiny.llama(300), tiny.byte_bpe(300))
    (here / "rows.jsonl").write_text('{"text": "a row"}\n')
    (here / "dump.jsonl").write_text('{"text": "a", "target_token_ids": [[1]]}\n')
    stores.write(here / "a")
    stores.write(here / "b", shards=(0,), seal=False)
    export_parquet(here / "a", here / "export")
    for name in ("run", "run2"):
        (here / name).mkdir()
        (here / name / "results.json").write_text(json.dumps({"name": name, "bits_per_byte": 1.0}))
    (here / "file").write_text("years of work")
    (here / "locked").mkdir()
    (here / "link").symlink_to("nothing")
    return here


@pytest.fixture
def here(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(whole)
    return whole


#: Breaks the machine; returns the place that is named.
Fault = Callable[[pytest.MonkeyPatch], str]


def writing_fails(code: int) -> Fault:
    """Whatever is written fails, as on a full disk; nothing that can be asked says so before."""

    def fault(monkeypatch: pytest.MonkeyPatch) -> str:
        def write(self: OsFs, path: Path, pieces: Iterable[Buffer]) -> None:
            path.write_bytes(b"torn")
            raise OSError(code, os.strerror(code), str(path))

        monkeypatch.setattr(OsFs, "write_durably", write)
        return "locked/out"

    return fault


def may_not_write(monkeypatch: pytest.MonkeyPatch) -> str:
    """`os.access` says no: tests may run as root, who may do anything."""
    access = os.access

    def says(path: object, mode: int, **more: object) -> bool:
        return Path(str(path)).absolute().name != "locked" and access(str(path), mode)

    monkeypatch.setattr(os, "access", says)
    return "locked/out"


def named(name: str) -> Fault:
    return lambda _: name


FAULTS: dict[str, tuple[Fault, str]] = {
    "a link to nothing": (named("link"), "link: is "),  # there already, to an export
    "a name of 245 letters": (named("n" * 245), "name"),
    "below a file": (named("file/out"), "file"),
    "in place of a file": (named("file"), "file"),
    "a full disk": (writing_fails(errno.ENOSPC), "the disk is full"),
    "a quota": (writing_fails(errno.EDQUOT), "quota is used up"),
    "denied by a server": (writing_fails(errno.EACCES), "no permission to write"),
    "a disk that turned read-only": (writing_fails(errno.EROFS), "read-only"),
    "a disk that fails": (writing_fails(errno.EIO), "Input/output error"),
}


def refuses(
    command: Command,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """Run a command whose long work must not begin; returns what it says."""
    called = []

    def long_work(*_: object, **__: object) -> NoReturn:
        called.append(command.begins)
        raise LongWorkError

    monkeypatch.setattr(command.begins, long_work)
    before = everything(Path.cwd())
    status, printed, said = _run(command, monkeypatch, capsys)(
        *shlex.split(command.typed.replace("OUT", out))[1:]
    )
    assert (called, status, printed) == ([], 2, ""), said
    assert everything(Path.cwd()) == before
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    assert command.option in error or out in error
    assert ".tmp-" not in error
    return error


def accepts(
    command: Command,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run a command up to where its long work begins."""

    def long_work(*_: object, **__: object) -> NoReturn:
        raise LongWorkError

    monkeypatch.setattr(command.begins, long_work)
    before = everything(Path.cwd())
    with pytest.raises(LongWorkError):
        _run(command, monkeypatch, capsys)(*shlex.split(command.typed.replace("OUT", out))[1:])
    assert everything(Path.cwd()) == before


def _run(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    from distill import cli as distill_cli
    from logitstore.cli.app import main

    programs: dict[str, Callable[[], object]] = {"logitstore": main, "distill": distill_cli.main}
    return runner(command.program, programs[command.program], monkeypatch, capsys)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_good_place_is_passed_and_left_as_it_was(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else no test here could fail: the long work would never begin anyway."""
    accepts(COMMANDS[name], "locked/out", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, fault) for name in COMMANDS for fault in FAULTS),
        # Of the folder of a file nobody asks: the trial itself says no.
        *((name, "a folder that may only be read") for name in STORES | FOLDERS),
    ],
)
def test_a_bad_place_is_told_before_any_long_work(
    name: str,
    fault: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaks, says = FAULTS.get(fault, (may_not_write, "no permission to write"))
    out = breaks(monkeypatch)
    assert says in refuses(COMMANDS[name], out, monkeypatch, capsys)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.startswith(("a full", "denied"))])
def test_a_student_that_cannot_be_completed_is_told_before_it_is_loaded(
    fault: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks, says = FAULTS[fault]
    accepts(EVALUATE, "run", monkeypatch, capsys)
    breaks(monkeypatch)
    assert says in refuses(EVALUATE, "run", monkeypatch, capsys)


# ---- committing: once and whole ----


def no_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.EACCES, errno.EXDEV])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_system_that_cannot_commit_is_told_to_whoever_commits(
    name: str,
    code: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    no_links(monkeypatch, code)
    monkeypatch.setattr(commit, "rename_if_free", lambda *_: False)
    command = COMMANDS[name]
    if name in STORES:
        said = refuses(command, "locked/out", monkeypatch, capsys)
        assert "can neither hard-link nor rename without replacing" in said
    else:
        accepts(command, "locked/out", monkeypatch, capsys)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.EACCES, errno.EXDEV])
@pytest.mark.parametrize("name", STORES)
def test_a_file_system_that_renames_without_replacing_will_do(
    name: str,
    code: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    no_links(monkeypatch, code)
    accepts(COMMANDS[name], "locked/out", monkeypatch, capsys)


@pytest.mark.parametrize("name", STORES)
def test_a_file_system_whose_rename_replaces_after_all_is_told(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one does that takes the flag and does not know it: shards would be lost."""
    no_links(monkeypatch, errno.EPERM)

    def replaces(source: Path, target: Path) -> bool:
        source.replace(target)
        return True

    monkeypatch.setattr(commit, "rename_if_free", replaces)
    assert "replaces a file" in refuses(COMMANDS[name], "locked/out", monkeypatch, capsys)


@pytest.mark.parametrize("name", STORES)
def test_a_store_whose_journal_cannot_be_written_beside_it_is_told(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a volume that is mounted at the place itself, in a folder of root's."""
    monkeypatch.chdir(here / "locked")
    (here / "locked" / "out").mkdir()
    try:
        may_not_write(monkeypatch)
        command = COMMANDS[name]
        typed = command.typed
        for word in ("teacher", "rows.jsonl", "dump.jsonl", "export ", "a ", " b "):
            typed = typed.replace(f" {word.strip()} ", f" ../{word.strip()} ")
        moved = Command(typed, command.begins)
        assert "no permission to write" in refuses(moved, "out", monkeypatch, capsys)
    finally:
        (here / "locked" / "out").rmdir()


def test_a_finished_store_may_lie_where_nothing_can_be_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written to it; one that is unfinished is refused."""
    writing_fails(errno.EROFS)(monkeypatch)
    accepts(STORES["import an export"], "a", monkeypatch, capsys)
    assert "read-only" in refuses(STORES["import an export"], "b", monkeypatch, capsys)


# ---- buckets ----


@pytest.mark.parametrize("name", [*STORES, "export to zarr"])
@pytest.mark.parametrize("fault", ["none", "no such bucket", "403", "replaces"])
def test_a_bucket_is_tried_before_any_long_work(
    name: str,
    fault: str,
    bucket: Bucket,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, out = COMMANDS[name], f"{bucket.url}/s"
    if fault == "none" or (fault == "replaces" and name not in STORES):
        accepts(command, out, monkeypatch, capsys)
    elif fault == "replaces":
        bucket.faults.ignore_conditions = True
        assert "this object store replaces" in refuses(command, out, monkeypatch, capsys)
    elif fault == "403":
        bucket.fail("PUT", "/s/", "403", times=9)
        assert "access was refused" in refuses(command, out, monkeypatch, capsys)
    else:
        assert "there is no such bucket" in refuses(command, "s3://none/s", monkeypatch, capsys)
    assert bucket.tree("s") == {}


def test_a_bucket_where_nothing_may_be_deleted_will_do(
    bucket: Bucket, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of archives that only grow: what was tried stays, and a seal does not mind."""
    bucket.fail("DELETE", "/s/", "403", times=99)
    bucket.fail("POST", "", "403", times=99)
    accepts(STORES["capture"], f"{bucket.url}/s", monkeypatch, capsys)
    (left,) = bucket.tree("s")
    assert left.startswith(objects.TRIAL_PREFIX)
    stores.write(f"{bucket.url}/s")
    assert "DONE" in bucket.tree("s")
