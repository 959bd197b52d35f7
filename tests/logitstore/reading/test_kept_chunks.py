"""What open shards keep decoded has a bound, and a chunk counts whole where a bomb is weighed.

Twelve shards of 20 KB could keep 24 MB each, and 64 may be open.
"""

from pathlib import Path

import pytest

from logitstore import open_store
from logitstore.errors import CorruptStoreError
from logitstore.format import shard_arrays
from logitstore.format.kept_chunks import KEPT, KeptChunks
from logitstore.reading.shard import Shard
from logitstore.store import LogitStore
from logitstore.testing import stores
from tests.kit.made_stores import put


def kept_bytes(shards: list[Shard]) -> int:
    readers = [reader for shard in shards for reader in shard._arrays.values()]
    chunks = [reader._last[2].nbytes for reader in readers if reader._last is not None]
    groups = [s._lines._table[1].nbytes for s in shards if s._lines._table is not None]
    return sum(chunks) + sum(groups)


def all_read(store: LogitStore) -> list[Shard]:
    for i in range(len(store)):
        store[i], store.text(i)
    return [store.shard(index) for index in store.shards]


def test_all_open_shards_together_keep_no_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boundaries = tuple(range(13))
    put(tmp_path / "s", stores.spec(chunks=(2048, 32_768)), boundaries)
    without_limit = kept_bytes(all_read(open_store(tmp_path / "s")))
    limit = without_limit // 4
    monkeypatch.setattr(KEPT, "limit_bytes", limit)
    shards = all_read(open_store(tmp_path / "s"))
    assert 0 < kept_bytes(shards) <= limit


def test_what_is_counted_is_dropped_oldest_first_and_the_newest_stays() -> None:
    class Keeps:
        has = True

        def drop(self) -> None:
            self.has = False

    kept, keepers = KeptChunks(100), [Keeps() for _ in range(4)]
    for keeper, size in zip(keepers, (40, 40, 40, 10), strict=True):
        kept.note(keeper, size)
    assert [k.has for k in keepers] == [False, True, True, True]
    kept.note(keepers[1], 500)  # in place of its 40
    assert [k.has for k in keepers] == [False, True, False, False]
    del keepers[1:]  # one that is gone is counted no longer than until its turn
    fresh = [Keeps(), Keeps()]
    for keeper in fresh:
        kept.note(keeper, 50)
    assert all(k.has for k in fresh)


LARGE_CHUNKS = (65_536, 1_048_576)


def test_a_few_bytes_in_large_chunks_are_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of the sequence are few; the chunks around them are not."""
    monkeypatch.setattr(shard_arrays, "_has_bomb", lambda *_: False)
    put(tmp_path / "s", stores.spec(chunks=LARGE_CHUNKS))
    assert sum(p.stat().st_size for p in (tmp_path / "s" / "shards").iterdir()) < 200_000
    with pytest.raises(CorruptStoreError, match="declare that they become"):
        open_store(tmp_path / "s")[0]


def test_a_writer_of_large_chunks_makes_no_bomb(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", stores.spec(chunks=LARGE_CHUNKS))
    store = open_store(tmp_path / "s")
    assert sum(len(store[i]) for i in range(len(store))) > 0
