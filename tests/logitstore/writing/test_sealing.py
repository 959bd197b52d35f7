"""A seal of many shards reads them in several processes, and goes on; also in a bucket."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError
from logitstore.format.spec import StoreHeader, shard_name
from logitstore.reading import shard_ends, shard_table
from logitstore.reading.shard_ends import LINES, RECORDS, encode_lines, lines_of, read_blocks
from logitstore.storage.folder import LocalPath
from logitstore.storage.paths import StorePath, store_path
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket
from logitstore.writing import sealing
from tests.kit.made_stores import put

SHARDS = 7


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where the store is: all of it holds for both."""
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        return tmp_path / "s"
    bucket = request.getfixturevalue("bucket")
    return f"{bucket.url}/s"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of seven shards in blocks of two, as if they were many."""
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    for module in (sealing, shard_table):
        monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(shard_ends, "BLOCK", 2)
    put(tmp_path / "s", stores.spec(vocab_size=50, top_k=3), tuple(range(SHARDS + 1)))
    return tmp_path / "s"


@pytest.fixture
def store(place: Any, folder: Path, request: pytest.FixtureRequest) -> StorePath:
    if place != folder:
        request.getfixturevalue("bucket").upload(folder, "s")
    return store_path(place)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards of which headers were read here, one process being allowed."""
    monkeypatch.setattr(shard_ends, "cores", lambda: 1)
    seen: list[int] = []

    def noted(path, header, shards):  # type: ignore[no-untyped-def]
        seen.extend(shards)
        return lines_of(path, header, shards)

    monkeypatch.setattr(sealing, "lines_of", noted)
    return seen


def seal_again(store: StorePath) -> None:
    (store / "DONE").delete()
    header = StoreHeader.read(store)
    files = stores.TOKENIZER_FILES
    stores.StoreWriter(store, header.spec, header.plan, files, header.provenance).seal()


def test_a_seal_in_blocks_has_the_bytes_of_any_other(store: StorePath, reads: list[int]) -> None:
    index = (store / "index.parquet").read_bytes()
    done = (store / "DONE").read_bytes()
    seal_again(store)
    assert reads == list(range(SHARDS))
    assert (store / "index.parquet").read_bytes() == index
    assert (store / "DONE").read_bytes() == done


def stopped_seal(store: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seal that fails after all blocks but the last; it began long after the shards came."""
    real, now = sealing.read_blocks, time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: now)

    def fails(path, what, blocks, read):  # type: ignore[no-untyped-def]
        yield from real(path, what, blocks[:-1], read)
        raise KeyboardInterrupt

    monkeypatch.setattr(sealing, "read_blocks", fails)
    with pytest.raises(KeyboardInterrupt):
        seal_again(store)
    monkeypatch.setattr(sealing, "read_blocks", real)
    assert not (store / "DONE").exists()


def test_a_seal_that_was_stopped_goes_on(
    store: StorePath, reads: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = (store / "index.parquet").read_bytes()
    stopped_seal(store, monkeypatch)
    reads.clear()
    seal_again(store)
    assert reads == [6], "only the block that was not read"
    assert (store / "index.parquet").read_bytes() == index
    assert list((tmp_path / "cache" / "sealing").iterdir()) == [], "nothing is left of it"


def test_a_shard_that_was_written_to_meanwhile_is_read_again(
    store: StorePath, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_seal(store, monkeypatch)
    reads.clear()
    shard = store / "shards" / shard_name(3)
    data = shard.read_bytes()
    if isinstance(shard, Path):  # the same size, and the same time as far as one can set it
        times = shard.stat()
        with shard.open("r+b") as file:
            file.write(data[:-86] + b"\0" * 86)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        shard.write_bytes(data[:-86] + b"\0" * 86)
    with pytest.raises(CorruptStoreError):
        seal_again(store)
    assert 3 in reads
    assert 0 not in reads


def test_what_was_written_in_the_last_seconds_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time may not tell it from the next write."""
    real, path, header = time.time_ns, store_path(folder), StoreHeader.read(folder)
    monkeypatch.setattr(time, "time_ns", lambda: (folder / "shards").stat().st_mtime_ns + 10**9)
    kept = sealing._Kept(path, header)
    kept.add(0, b"[]")
    assert kept.lines(0) is None
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10**10)
    kept = sealing._Kept(path, header)
    kept.add(0, b"[]")
    assert kept.lines(0) == b"[]"


def test_a_bucket_that_says_nothing_of_its_objects_has_nothing_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalPath, "stamps", lambda self: {})
    kept = sealing._Kept(store_path(folder), StoreHeader.read(folder))
    kept.add(0, b"[]")
    assert kept.lines(0) is None


def assert_same_said(path: StorePath) -> None:
    header = StoreHeader.read(path)

    def never(block: int) -> bytes:
        raise AssertionError(f"block {block} was read here")

    blocks = [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]
    expected = [encode_lines(lines_of(path, header, block)) for block in blocks]
    assert [*read_blocks(path, LINES, [0, 1, 2, 3], never, jobs=2)] == expected
    counts = b"".join(read_blocks(path, RECORDS, [0, 1, 2, 3], never, jobs=2))
    assert np.frombuffer(counts, "<i8").tolist() == open_store(path).token_counts.tolist()


def test_other_processes_say_what_this_one_would(folder: Path) -> None:
    assert_same_said(store_path(folder))


@pytest.mark.slow
def test_other_processes_say_it_of_a_bucket_too(folder: Path, bucket: Bucket) -> None:
    assert_same_said(store_path(bucket.upload(folder, "s")))


def test_a_process_that_dies_costs_nothing_but_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_ends.sys, "executable", "/bin/true")
    found = [*read_blocks(store_path(folder), RECORDS, [0, 1, 2], lambda b: b"%d" % b, jobs=2)]
    assert found == [b"0", b"1", b"2"]


def test_counts_of_many_shards_are_kept(store: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_ends, "cores", lambda: 1)
    counts = open_store(store).token_counts
    assert counts.tolist() == [len(records) for records in open_store(store)]
    monkeypatch.setattr(shard_table, "read_blocks", None)
    assert open_store(store).token_counts.tolist() == counts.tolist()
    assert verify_store(store, deep=True).damaged == []
