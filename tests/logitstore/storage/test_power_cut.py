"""A power cut forgets whatever was not synced; two writers meet; folders refuse. Stores survive.

The disk of these tests is the worst that POSIX allows: a file's bytes are there after a cut only if
the file was synced, and a name (made, moved or removed) only if its folder was.
"""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from logitstore import open_store
from logitstore.checking.verify import verify_store
from logitstore.errors import StorageError
from logitstore.format.spec import Plan
from logitstore.records import Segment, SequenceText
from logitstore.storage import commit
from logitstore.storage.commit import OsFs
from logitstore.storage.files import Buffer
from logitstore.testing import stores
from logitstore.writing.encode import encode_records
from logitstore.writing.writer import StoreWriter
from tests.logitstore.storage.test_commit_faults import CrashingFs, InjectedCrashError


class VolatileFs(CrashingFs):
    """Remembers what a power cut would leave: names by folder, bytes by file, each once synced."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.synced_names: dict[int, dict[str, int]] = {}
        self.synced_bytes: dict[int, bytes] = {}

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
        super().write_durably(path, pieces)
        self.synced_bytes[path.stat().st_ino] = path.read_bytes()

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.synced_names[path.stat().st_ino] = names(path)

    def after_the_cut(self, folder: Path, target: Path, luck: np.random.Generator | None) -> None:
        """Write what is left of `folder` to `target`; with luck, some unsynced names made it."""
        by_inode = {p.stat().st_ino: p for p in [folder, *folder.rglob("*")]}
        self._restore(folder.stat().st_ino, by_inode, target, luck)

    def _restore(
        self,
        inode: int,
        by_inode: dict[int, Path],
        target: Path,
        luck: np.random.Generator | None,
    ) -> None:
        if inode not in by_inode or not by_inode[inode].is_dir():
            target.write_bytes(self.synced_bytes.get(inode, b""))
            return
        target.mkdir()
        now = names(by_inode[inode])
        left = dict(self.synced_names.get(inode, {}))
        for name in now.keys() | left.keys():
            if luck is not None and luck.random() < 0.5:
                left = {k: v for k, v in left.items() if k != name}
                left |= {name: now[name]} if name in now else {}
        for name, child in left.items():
            self._restore(child, by_inode, target / name, luck)


def names(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_ino for p in folder.iterdir() if p.name != "s.journal.jsonl"}


@pytest.mark.parametrize(
    "luck", [None, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_a_power_cut_at_any_step_leaves_a_store_that_resumes(
    tmp_path: Path, luck: int | None
) -> None:
    stores.write(tmp_path / "whole")
    wanted = stores.tree(tmp_path / "whole")
    for at in itertools.count():
        before, after = tmp_path / f"{at}-before", tmp_path / f"{at}-after"
        before.mkdir()
        fs = VolatileFs(at)
        try:
            stores.write(before / "s", fs=fs)
            finished = True
        except InjectedCrashError:
            finished = False
        fs.after_the_cut(before, after, None if luck is None else np.random.default_rng(luck))
        assert_consistent(after / "s", wanted, committed_shards(before))
        if finished:
            assert stores.tree(after / "s") == wanted
            break
        shutil.rmtree(before)
        shutil.rmtree(after)
    assert at > 25


def committed_shards(folder: Path) -> int:
    """Shards that the writer had been told are safe."""
    journal = folder / "s.journal.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return sum(json.loads(line)["event"] == "shard" for line in lines)


def assert_consistent(store: Path, wanted: dict[str, bytes], committed: int) -> None:
    shards = list(store.glob("shards/*.zarr.zip"))
    assert len(shards) >= committed, "a committed shard was lost"
    for path in shards:
        assert path.read_bytes() == wanted[f"shards/{path.name}"]
    if (store / "store.json").exists():
        assert verify_store(store, deep=True, allow_partial=True).damaged == []
    stores.write(store)
    assert stores.tree(store) == wanted


def test_a_file_that_is_named_but_not_synced_would_be_seen_to_be_lost(tmp_path: Path) -> None:
    """The disk of these tests does forget: leave out one sync and it shows."""

    class Hasty(VolatileFs):
        def sync_folder(self, path: Path) -> None:
            if path.name != "shards":
                super().sync_folder(path)

    (tmp_path / "before").mkdir()
    fs = Hasty(10**9)
    stores.write(tmp_path / "before" / "s", fs=fs)
    fs.after_the_cut(tmp_path / "before", tmp_path / "after", None)
    assert not list((tmp_path / "after" / "s" / "shards").iterdir())


def write_other_bytes(path: Path, seed: int, barrier: Barrier) -> None:
    """A worker whose teacher rounds differently."""
    of, plan = stores.spec(), Plan("d" * 64, tuple(range(13)))
    barrier.wait()
    writer = StoreWriter(path, of, plan, stores.TOKENIZER_FILES, {"tokens_per_batch": 64})
    for index in range(plan.shard_count):
        raw = stores.raw_records(of, ["one ", "two"], np.random.default_rng([seed, index]))
        line = SequenceText(index, 0, "ok", (Segment("one two", True),))
        barrier.wait()
        writer.write_shard(index, [(line, encode_records(raw, of))])


def test_of_two_processes_with_different_bytes_one_wins_each_shard_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    arguments = [(tmp_path / "s", seed, barrier) for seed in (1, 2)]
    workers = [context.Process(target=write_other_bytes, args=a) for a in arguments]
    seen: dict[Path, bytes] = {}
    for worker in workers:
        worker.start()
    while any(w.is_alive() for w in workers):
        for path in (tmp_path / "s" / "shards").glob("*.zarr.zip"):
            data = path.read_bytes()
            assert seen.setdefault(path, data) == data, "a committed shard was replaced"
    assert [w.exitcode for w in workers] == [0, 0]
    journal = (tmp_path / "s.journal.jsonl").read_text().splitlines()
    committed = [(e["shard"], e["committed"]) for e in map(json.loads, journal)]
    assert sorted(committed) == sorted((i, won) for i in range(12) for won in (False, True))
    plan = Plan("d" * 64, tuple(range(13)))
    StoreWriter(tmp_path / "s", stores.spec(), plan, stores.TOKENIZER_FILES).seal()
    assert verify_store(tmp_path / "s", deep=True).damaged == []
    assert not list((tmp_path / "s").rglob(".tmp-*"))


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_hard_links_a_rename_that_never_replaces_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.write(tmp_path / "whole")
    monkeypatch.setattr(os, "link", no_links)
    stores.write(tmp_path / "s")
    assert stores.tree(tmp_path / "s") == stores.tree(tmp_path / "whole")
    assert commit.create(tmp_path / "x", [b"first"])
    assert not commit.create(tmp_path / "x", [b"second"])
    assert (tmp_path / "x").read_bytes() == b"first"
    assert not list(tmp_path.glob(".tmp-*"))


def test_without_either_nothing_is_written_and_the_error_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(commit, "rename_if_free", lambda *_: False)
    with pytest.raises(StorageError, match="neither hard-link nor rename without replacing"):
        stores.write(tmp_path / "s")
    assert not (tmp_path / "s" / "store.json").exists()
    assert not list((tmp_path / "s").glob(".tmp-store*"))


def test_a_system_without_that_rename_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    (tmp_path / "a").touch()
    assert not commit.rename_if_free(tmp_path / "a", tmp_path / "b")


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users can enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_a_nobody(do: Callable[[], object]) -> bool:
    """Whether it went well in a process that file permissions apply to."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            do()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_folder_that_may_only_be_read_is_read_and_one_error_to_a_writer(
    shared_folder: Path,
) -> None:
    store = shared_folder / "s"
    stores.write(store, shards=(0,), seal=False)
    for folder in (store / "shards", store, shared_folder):
        folder.chmod(0o555)

    def read() -> None:
        assert len(open_store(store, allow_partial=True)[0]) > 0

    def write(path: Path) -> None:
        with pytest.raises(StorageError, match="no permission to write here"):
            stores.write(path)

    try:
        assert as_a_nobody(read)
        assert as_a_nobody(lambda: write(store))
        assert as_a_nobody(lambda: write(shared_folder / "other"))
    finally:
        for folder in (shared_folder, store, store / "shards"):
            folder.chmod(0o755)
    stores.write(store)
    assert verify_store(store, deep=True).damaged == []


def test_a_read_only_file_system_is_one_error(tmp_path: Path) -> None:
    class ReadOnly(OsFs):
        def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(StorageError, match=r"read-only.*Choose another --out"):
        stores.write(tmp_path / "s", fs=ReadOnly())
