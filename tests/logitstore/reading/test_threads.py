"""Threads that decode change nothing, outlive nothing, and stay out of data loaders' workers."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numcodecs import blosc

from logitstore import open_store
from logitstore.errors import CorruptStoreError
from logitstore.reading import threads as parallel
from logitstore.records import TokenRecords
from logitstore.testing import stores


@pytest.fixture
def store_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stores.write(tmp_path / "s", stores.spec(draws=3, chunks=(4, 9)))
    monkeypatch.setattr(parallel, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(parallel, "_cores", lambda: 4)
    return tmp_path / "s"


def threads_used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    used: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int) -> None:
            used.append(threads)
            super().__init__(threads)

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Pool)
    return used


def assert_equal(mine: TokenRecords, other: TokenRecords) -> None:
    for name in TokenRecords.__slots__:
        np.testing.assert_array_equal(getattr(mine, name), getattr(other, name), err_msg=name)


def test_threads_read_what_one_reads_and_are_gone_afterwards(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, before = threads_used(monkeypatch), blosc.use_threads
    store, order = open_store(store_path), [11, 0, 5, 5, 2, 7, 1, 9]
    running = threading.active_count()
    for _ in range(5):
        for i, records in zip(order, store.read_many(order), strict=True):
            assert_equal(records, open_store(store_path)[i])
    assert used == [3] * 5
    assert threading.active_count() == running
    assert blosc.use_threads is before


def test_a_workers_process_starts_none(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = threads_used(monkeypatch)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    open_store(store_path).read_many(range(12))
    assert used == []


def test_damage_in_a_thread_is_raised_as_damage(store_path: Path) -> None:
    shard = store_path / "shards" / "00001.zarr.zip"
    data = bytearray(shard.read_bytes())
    store = open_store(store_path)
    member = store.shard(1).archive.members["entry_ids/c/0"]
    data[member.start + 20] ^= 1
    del store
    shard.unlink()
    shard.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"entry_ids: chunk 0 does not match its checksum"):
        open_store(store_path).read_many(range(12))
