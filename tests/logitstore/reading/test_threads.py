"""Threads that decode change nothing, outlive nothing, and stay out of data loaders' workers."""

import multiprocessing
import os
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numcodecs import blosc

from logitstore import open_store
from logitstore.errors import CorruptStoreError
from logitstore.reading import open_shards
from logitstore.reading import threads as parallel
from logitstore.records import TokenRecords
from logitstore.testing import stores
from tests.kit.made_stores import put


@pytest.fixture
def store_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put(tmp_path / "s", stores.spec(draws=3, chunks=(4, 9)))
    monkeypatch.setattr(parallel, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(parallel, "cores", lambda: 4)
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


# -- threads of the caller -------------------------------------------------------------------------


def test_threads_of_a_caller_share_one_open_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads its own line and records, whatever the others read; few shards stay open."""
    put(tmp_path / "s", stores.spec(vocab_size=50, top_k=3), (0, 70, 75, 150, 160))
    monkeypatch.setattr(open_shards, "_OPEN_SHARDS", 2)
    alone, store = open_store(tmp_path / "s"), open_store(tmp_path / "s")
    lines = [alone.text(i) for i in range(160)]
    sums = [int(alone[i].token_ids.sum()) for i in range(160)]
    wrong: list[object] = []

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(160)[:30].tolist():
            try:
                if store.text(i) != lines[i] or int(store[i].token_ids.sum()) != sums[i]:
                    wrong.append(i)
            except Exception as error:  # whatever it is
                wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(read, range(6)))
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


def test_no_shard_is_closed_while_another_thread_takes_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One finds a shard; before it is noted as used, another has opened one, and room is for one.

    Without the lock the other is done at once, and what was found is not there any more. With it
    the other waits for the first: that it is not done in a while is how it is to be.
    """
    put(tmp_path / "s")
    monkeypatch.setattr(open_shards, "_OPEN_SHARDS", 1)
    store = open_store(tmp_path / "s")
    first, second = store.shard(0), store.shard(1)
    mine = store._shards._of_process()
    mine.put(0, first)  # the second is closed: there is room for one
    other = threading.Thread(target=mine.put, args=(1, second))

    class Taken(OrderedDict[int, Any]):
        def get(self, index: int, default: Any = None) -> Any:
            found = super().get(index, default)
            other.start()
            other.join(0.2)
            return found

    mine._open = Taken(mine._open)
    assert store.shard(0) is first
    other.join()
    assert list(mine._open) == [1]


def test_no_two_threads_are_in_one_parquet_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not made for that: two reads at once take each other's buffers away."""
    put(tmp_path / "s", stores.spec(vocab_size=50, top_k=3), (0, 200))
    store, both = open_store(tmp_path / "s"), threading.Barrier(2)
    inside: list[object] = []
    store.text(0), store.text(1)
    real = pq.ParquetFile.read_row_group

    def read(self: pq.ParquetFile, *args: object, **options: object) -> object:
        inside.append(self)
        both.wait(20)
        return real(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read)
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(store.text, (64, 128)))
    assert [text.row for text in texts] == [64, 128]
    assert inside[0] is not inside[1]


def test_a_forked_process_begins_with_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of its parent may have held the lock, or been inside of a shard."""
    put(tmp_path / "s")
    store = open_store(tmp_path / "s")
    shard, parent = store.shard(0), os.getpid()
    store._shards._of_process()._lock.acquire()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert store.shard(0) is not shard
