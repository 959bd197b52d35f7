"""Crash the writer at every step it takes, then open the store as a stranger would."""

import errno
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from logitstore import open_store
from logitstore.checking.verify import verify_store
from logitstore.errors import LogitStoreError, StorageError
from logitstore.storage import commit
from logitstore.storage.commit import OsFs
from logitstore.storage.files import Buffer
from logitstore.testing import stores


class InjectedCrashError(BaseException):
    """Not an Exception, so no `except Exception` on the write path can swallow it."""


class CrashingFs(OsFs):
    """Stops at operation number `at`, leaving a torn file behind when that is a write."""

    def __init__(self, at: int) -> None:
        self.at, self.done = at, 0

    def _step(self) -> None:
        self.done += 1
        if self.done > self.at:
            raise InjectedCrashError

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
        if self.done == self.at:
            data = b"".join(pieces)
            path.write_bytes(data[: len(data) // 2])
        self._step()
        super().write_durably(path, pieces)

    def link(self, source: Path, target: Path) -> None:
        self._step()
        super().link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self._step()
        super().sync_folder(path)


class ForgetfulFs(OsFs):
    """A machine that may lose power at any moment: a name for bytes not yet durable is a loss."""

    def __init__(self) -> None:
        self.synced: set[int] = set()

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
        super().write_durably(path, pieces)
        self.synced.add(path.stat().st_ino)

    def link(self, source: Path, target: Path) -> None:
        assert source.stat().st_ino in self.synced, f"{target} was named before it was durable"
        super().link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        if source.is_file():
            assert source.stat().st_ino in self.synced, f"{target} was named before it was durable"
        super().replace(source, target)


def test_every_crash_point_leaves_committed_shards_whole_and_resumes(tmp_path: Path) -> None:
    stores.write(tmp_path / "whole")
    wanted = stores.tree(tmp_path / "whole")
    for at in itertools.count():
        root = tmp_path / f"crash-{at}"
        try:
            stores.write(root, fs=CrashingFs(at))
            finished = True
        except InjectedCrashError:
            finished = False
        for path in root.glob("shards/*.zarr.zip"):
            name = f"shards/{path.name}"
            assert path.read_bytes() == wanted[name], f"crash at {at}: {name} is not whole"
        if (root / "store.json").exists():
            assert verify_store(root, allow_partial=True, deep=True).damaged == []
        stores.write(root)
        assert stores.tree(root) == wanted, f"crash at {at}: resumed to other bytes"
        if finished:
            break
    # Two folders, tokenizer, store.json, three shards, index and DONE.
    steps = 2 + 5 + 4 + 3 * 4 + 2 * 3
    assert at == steps, "a store takes another number of steps: is each one still covered?"


def test_nothing_is_named_before_its_bytes_are_durable(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", fs=ForgetfulFs())


def test_the_real_file_system_syncs_file_then_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skip an fsync and this goes red: order is the contract."""
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def spy_fsync(fd: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"
        steps.append(f"sync {kind}")
        fsync(fd)

    def spy_link(a: Path, b: Path) -> None:
        steps.append("link")
        link(a, b)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "link", spy_link)
    assert commit.create(tmp_path / "x", [b"abc"])
    assert steps == ["sync file", "link", "sync folder"]


def test_of_two_writers_with_different_bytes_one_wins_whole(tmp_path: Path) -> None:
    assert commit.create(tmp_path / "x", [b"first", b" writer"])
    assert not commit.create(tmp_path / "x", [b"second"])
    assert stores.tree(tmp_path) == {"x": b"first writer"}


def test_a_late_twin_of_a_sealed_store_changes_nothing(tmp_path: Path) -> None:
    stores.write(tmp_path / "s")
    before = {p: (p.stat().st_ino, p.read_bytes()) for p in (tmp_path / "s").rglob("*.zip")}
    stores.write(tmp_path / "s", shards=(0, 1, 2), seal=False)
    assert before == {p: (p.stat().st_ino, p.read_bytes()) for p in (tmp_path / "s").rglob("*.zip")}


class RefusingFs(OsFs):
    """Refuses one kind of operation, as a full or odd file system does."""

    def __init__(self, operation: str, code: int) -> None:
        self.operation, self.code = operation, code

    def _maybe(self, operation: str) -> None:
        if operation == self.operation:
            raise OSError(self.code, os.strerror(self.code))

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
        if ".zarr.zip" in path.name:
            path.write_bytes(b"torn")
            self._maybe("write")
            path.unlink()
        super().write_durably(path, pieces)

    def link(self, source: Path, target: Path) -> None:
        if ".zarr.zip" in target.name:
            self._maybe("link")
        super().link(source, target)


@pytest.mark.parametrize(
    ("operation", "code", "says"),
    [
        ("write", errno.ENOSPC, "the disk is full"),
        ("write", errno.EDQUOT, "quota is used up"),
        ("write", errno.EROFS, "read-only"),
        ("write", errno.EIO, "the file system refused"),
        ("link", errno.EPERM, "neither hard-link nor.*local disk"),
    ],
)
def test_a_file_system_that_refuses_is_one_error_and_nothing_half_written(
    tmp_path: Path, operation: str, code: int, says: str
) -> None:
    with pytest.raises(StorageError, match=says):
        stores.write(tmp_path / "s", fs=RefusingFs(operation, code))
    assert not list((tmp_path / "s" / "shards").iterdir())
    stores.write(tmp_path / "s")
    assert len(open_store(tmp_path / "s")) == 12


def test_a_folder_without_permission_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogitStoreError, match=r"--out"):
        stores.write(tmp_path / "file" / "below")
