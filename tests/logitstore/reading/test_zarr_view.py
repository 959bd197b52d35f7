"""A store seen through zarr: the same arrays, the same refusals, and never a way to write."""

import multiprocessing
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from logitstore import open_store
from logitstore.errors import CorruptStoreError, InputError, LogitStoreError, MissingLibraryError
from logitstore.format import zarr_arrays
from logitstore.format.limits import FREE_BYTES, Cost
from logitstore.format.spec import StoreSpec
from logitstore.reading.shard import Shard
from logitstore.store import LogitStore
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket
from tests.kit import attacks_on_shards
from tests.kit.attacks_on_shards import ATTACKS
from tests.kit.made_stores import put
from tests.kit.paths import ROOT

GOLDEN = sorted((ROOT / "tests" / "golden").iterdir())
COMPACT = stores.spec(codec="compact", draws=5, temperatures=(2.0, 0.5))
#: Attacks on what zarr is given: the archive, the group, metadata, indexes, chunks and sizes. The
#: dictionary has those on other files too, once anyone has imported them.
SEEN = [
    name
    for name, spoil in ATTACKS.items()
    if name.split("_")[0] in ("zip", "chunk", "index", "metadata", "size")
    and spoil.__module__ == attacks_on_shards.__name__
]


@pytest.fixture(autouse=True)
def compact_without_remark() -> Iterator[None]:
    """Of pcodec, zarr remarks that its specification does not have it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr")
        yield


def written(path: Path, of: StoreSpec | None = None, **how: Any) -> LogitStore:
    put(path, of, **how)
    return open_store(path)


def read_all(group: zarr.Group) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of every shard."""
    return {
        f"{shard}/{name}": np.asarray(array[...])
        for shard, arrays in group.groups()
        for name, array in arrays.arrays()
    }


def same_values(store: LogitStore, group: zarr.Group) -> int:
    """How many arrays zarr reads just as the store does."""
    found = read_all(group)
    for key, values in found.items():
        shard, name = key.split("/")
        one = store.shard(int(shard))
        if values.size:
            np.testing.assert_array_equal(values, one.array(name), err_msg=key)
            assert values.dtype == one.array(name).dtype
    return len(found)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.name)
def test_zarr_reads_the_arrays_of_old_stores_as_we_do(path: Path) -> None:
    store = open_store(path)
    assert same_values(store, store.zarr) >= 10 * len(store.shards)


@pytest.mark.parametrize("of", [stores.spec(chunks=(3, 7)), COMPACT, stores.spec(top_k=0)])
def test_each_shard_is_a_subgroup_that_says_what_it_is(tmp_path: Path, of: StoreSpec) -> None:
    store = written(tmp_path / "s", of)
    group = store.zarr
    assert sorted(group.group_keys()) == ["00000", "00001", "00002"]
    assert list(group.array_keys()) == []
    about: Any = group.attrs["logitstore"]
    assert (about["content"], about["rows"]) == (vars(store.spec), 12)
    for shard, arrays in group.groups():
        assert arrays.attrs["logitstore"] == store.shard(int(shard)).about
        members = store.shard(int(shard)).archive.names
        assert set(arrays.array_keys()) == {m.split("/")[0] for m in members if "/" in m}
    assert same_values(store, group) > 30


def test_a_slice_reads_only_the_chunks_it_touches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = written(tmp_path / "s", stores.spec(chunks=(3, 7)), boundaries=(0, 12))
    asked: list[int] = []
    payload = zarr_arrays.ArrayReader._payload

    def counted(self: Any, i: int) -> bytes:
        asked.append(i)
        return payload(self, i)

    array: Any = store.zarr["00000/entry_logprobs"]
    monkeypatch.setattr(zarr_arrays.ArrayReader, "_payload", counted)
    got = array[20:30]
    assert asked
    assert set(asked) <= {2, 3, 4}
    np.testing.assert_array_equal(got, store.shard(0).array("entry_logprobs")[20:30])


def test_a_member_has_no_text_and_no_more_keys_than_its_arrays(tmp_path: Path) -> None:
    view = written(tmp_path / "s").zarr.store

    async def keys(prefix: str) -> list[str]:
        return [key async for key in view.list_prefix(prefix)]

    async def below(prefix: str) -> list[str]:
        return [key async for key in view.list_dir(prefix)]

    from zarr.core.sync import sync

    everything = sync(keys(""))
    assert not any(key.endswith("rows.parquet") for key in everything)
    assert everything[0] == "zarr.json"
    assert sync(keys("0000")) == everything[1:]
    assert sync(keys("00001/token")) == [
        f"00001/{name}"
        for name in (
            "token_ids/c/0",
            "token_ids/zarr.json",
            "token_logprob/c/0",
            "token_logprob/zarr.json",
        )
    ]
    assert sync(below("")) == ["zarr.json", "00000", "00001", "00002"]
    assert sync(below("00000/token_ids")) == ["c", "zarr.json"]
    assert sync(below("00007")) == []
    for key in everything:
        value = sync(view.get(key, zarr.core.buffer.default_buffer_prototype()))
        assert value is not None
        assert sync(view.getsize(key)) == len(value)
        assert sync(view.exists(key))
    for key in ("00000/rows.parquet", "00009/zarr.json", "00000", "", "00000/token_ids/c/1"):
        assert not sync(view.exists(key))


WRITES: dict[str, Callable[[zarr.Group], object]] = {
    "values": lambda g: g["00000/token_ids"].__setitem__(0, 1),
    "an array": lambda g: g.create_array("x", shape=(3,), dtype="u1"),
    "a group": lambda g: g.create_group("x"),
    "attributes": lambda g: g.attrs.update({"x": 1}),
    "a removal": lambda g: g.__delitem__("00000"),
    "a writable copy": lambda g: g.store.with_read_only(False),
    "emptying it": lambda g: zarr.core.sync.sync(g.store.set("x", None)),
}


@pytest.mark.parametrize("what", WRITES)
def test_every_write_is_the_same_refusal(tmp_path: Path, what: str) -> None:
    store = written(tmp_path / "s")
    before = stores.tree(tmp_path / "s")
    with pytest.raises(InputError, match=r"is for reading\. Make a group of your own") as caught:
        WRITES[what](store.zarr)
    assert str(tmp_path / "s") in str(caught.value)
    assert stores.tree(tmp_path / "s") == before


def test_a_flipped_byte_is_our_error_and_only_there(tmp_path: Path) -> None:
    store = written(tmp_path / "s")
    path = tmp_path / "s" / "shards" / "00001.zarr.zip"
    data = bytearray(path.read_bytes())
    data[data.index(bytes(store.shard(1).archive["token_ids/c/0"])) + 40] ^= 1
    path.write_bytes(data)
    group = open_store(tmp_path / "s").zarr
    with pytest.raises(CorruptStoreError, match=r"token_ids: chunk 0 .*checksum") as caught:
        group["00001/token_ids"][:]
    assert (caught.value.path.name, caught.value.rows) == ("00001.zarr.zip", (3, 6))
    assert "logitstore repair" in str(caught.value)
    assert len(group["00001/entry_count"][:])
    assert len(group["00000/token_ids"][:])


def test_a_file_cut_short_is_our_error(tmp_path: Path) -> None:
    written(tmp_path / "s")
    path = tmp_path / "s" / "shards" / "00002.zarr.zip"
    path.write_bytes(path.read_bytes()[:-200])
    group = open_store(tmp_path / "s").zarr
    with pytest.raises(CorruptStoreError, match=r"00002\.zarr\.zip"):
        group["00002"]
    with pytest.raises(CorruptStoreError, match=r"00002\.zarr\.zip"):
        list(group.groups())


@pytest.mark.parametrize("name", SEEN)
def test_an_attack_on_a_shard_reaches_no_decoder(tmp_path: Path, name: str) -> None:
    put(tmp_path / "s", stores.spec(chunks=(3, 7)))
    ATTACKS[name](tmp_path / "s")
    with pytest.raises(LogitStoreError):
        open_store(tmp_path / "s").zarr["00001/token_ids"][:]


def test_a_bomb_is_rejected_before_anything_is_decoded(tmp_path: Path) -> None:
    put(tmp_path / "s")
    ATTACKS["array_of_gigabytes_of_zeros"](tmp_path / "s")
    group = open_store(tmp_path / "s").zarr
    with pytest.raises(CorruptStoreError, match="declare that they become"):
        group["00001/entry_logprobs"]
    assert len(group["00000/entry_logprobs"][:])


def test_arrays_of_one_value_in_a_shard_of_many_are_no_bomb(tmp_path: Path) -> None:
    """Counts that are all the same take nearly no bytes: whole shards are judged, not arrays."""
    counts, ids = _FakeReader(2 * FREE_BYTES, 1000), _FakeReader(4 * FREE_BYTES, FREE_BYTES)
    Shard.check_whole(_FakeShard({"entry_count": counts, "token_ids": ids}))
    with pytest.raises(CorruptStoreError, match="declare"):
        Shard.check_whole(_FakeShard({"entry_count": counts}))


class _FakeReader:
    def __init__(self, decoded: int, stored: int) -> None:
        self.spec = type("Spec", (), {"shape": (1,)})()
        self._cost = Cost(decoded, decoded, stored)

    def cost(self, start: int, stop: int) -> Cost:
        return self._cost


class _FakeShard(Shard):
    path = Path("a/shards/00000.zarr.zip")

    def __init__(self, readers: Any) -> None:
        self._arrays, self._rows = readers, (0, 1)


def test_without_pcodec_a_compact_store_lists_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = written(tmp_path / "s", COMPACT).zarr
    monkeypatch.setitem(sys.modules, "pcodec", None)
    assert "token_ids" in set(group["00000"].array_keys())
    assert group["00000/token_ids"].shape > (0,)
    with pytest.raises(MissingLibraryError, match=r"pip install 'logitstore\[compact\]'"):
        group["00000/token_ids"][:]


def total(group: zarr.Group) -> int:
    return sum(int(values.sum(dtype=np.int64)) for values in read_all(group).values())


def test_a_group_is_pickled_and_forked_and_shared_by_threads(tmp_path: Path) -> None:
    group = written(tmp_path / "s").zarr
    expected = total(group)
    assert total(pickle.loads(pickle.dumps(group))) == expected
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(total, [group] * 4)) == {expected}
    with multiprocessing.get_context("fork").Pool(2) as workers:
        assert workers.map(total, [group] * 2) == [expected] * 2


def test_equal_views_are_of_the_same_shards_of_the_same_store(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a"), written(tmp_path / "b")
    assert one.zarr.store == open_store(tmp_path / "a").zarr.store
    assert one.zarr.store != two.zarr.store
    assert str(tmp_path / "a") in repr(one.zarr.store)


def test_of_an_unfinished_store_the_shards_that_are_there(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", shards=(0, 2), seal=False)
    group = open_store(tmp_path / "s", allow_partial=True).zarr
    assert sorted(group.group_keys()) == ["00000", "00002"]
    with pytest.raises(KeyError):
        group["00001"]


def test_of_a_bucket_listing_fetches_no_shard_and_reading_fetches_one(
    bucket: Bucket, tmp_path: Path
) -> None:
    local = written(tmp_path / "s")
    store = open_store(bucket.upload(tmp_path / "s", "s"))
    assert [name for name, _ in store.zarr.groups()] == ["00000", "00001", "00002"]
    cached = tmp_path / "cache" / "shards"
    assert not list(cached.glob("*.zip"))
    np.testing.assert_array_equal(
        store.zarr["00002/entry_ids"][:], local.shard(2).array("entry_ids")
    )
    assert len(list(cached.glob("*.zip"))) == 1
    assert same_values(local, store.zarr) > 30


def test_a_damaged_copy_in_the_cache_is_fetched_anew(bucket: Bucket, tmp_path: Path) -> None:
    local = written(tmp_path / "s", boundaries=(0, 12))
    store = open_store(bucket.upload(tmp_path / "s", "s"))
    [group] = [g for _, g in store.zarr.groups()]
    assert len(group["token_ids"][:])
    [copy] = (tmp_path / "cache" / "shards").glob("*.zip")
    data = bytearray(copy.read_bytes())
    data[40] ^= 1
    copy.write_bytes(data)
    again = open_store(store.path)
    np.testing.assert_array_equal(
        again.zarr["00000/token_ids"][:], local.shard(0).array("token_ids")
    )


def test_a_chunk_that_says_another_size_is_never_given_to_zarr(tmp_path: Path) -> None:
    """Its checksums are right, so zarr itself would believe it."""
    put(tmp_path / "s")
    ATTACKS["chunk_that_declares_gigabytes"](tmp_path / "s")
    with pytest.raises(CorruptStoreError, match="token_ids: chunk 0 declares 2147483647 bytes"):
        open_store(tmp_path / "s").zarr["00001/token_ids"][:]


def test_opening_a_store_does_not_import_zarr(tmp_path: Path) -> None:
    put(tmp_path / "s")
    code = (
        "import sys, logitstore; s = logitstore.open_store(sys.argv[1]); s[0]; "
        "print('zarr' in sys.modules); s.zarr; print('zarr' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "s"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]
