"""A store in a bucket is the store that a folder has, byte for byte, and reads the same."""

import dataclasses
import json
import multiprocessing
import pickle
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from logitstore import open_store
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.cli.app import app
from logitstore.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    InputError,
    MismatchError,
    NotAStoreError,
    StorageError,
)
from logitstore.format.spec import Plan
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import store_path
from logitstore.store import LogitStore
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket
from logitstore.writing.writer import StoreWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 12 rows in 3 shards, and its equal for the tests to look into."""
    path = tmp_path_factory.mktemp("stores") / "s"
    stores.write(path)
    return path


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address in this process's memory that no other test uses."""
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    return f"memory://{uuid.uuid4().hex}/s"


def assert_same_reading(one: LogitStore, other: LogitStore) -> None:
    assert len(one) == len(other)
    assert one.token_counts.tolist() == other.token_counts.tolist()
    assert one.sequence_rows.tolist() == other.sequence_rows.tolist()
    for i in range(len(one)):
        assert one.text(i) == other.text(i)
        a, b = dataclasses.asdict(one[i]), dataclasses.asdict(other[i])
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_bucket_holds_the_bytes_that_a_folder_would(bucket: Bucket, folder: Path) -> None:
    stores.write(f"{bucket.url}/runs/s")
    assert bucket.tree("runs/s") == stores.tree(folder)


def test_a_copy_of_a_folder_is_a_store(bucket: Bucket, folder: Path) -> None:
    assert_same_reading(open_store(bucket.upload(folder, "copied")), open_store(folder))


def test_the_journal_lies_beside_the_store_in_objects_of_each_process(bucket: Bucket) -> None:
    stores.write(f"{bucket.url}/s")
    journal = b"".join(bucket.tree("s.journal").values()).decode()
    events = [json.loads(line)["event"] for line in journal.splitlines()]
    assert events == ["shard", "shard", "shard", "sealed"]


@pytest.mark.parametrize("parts", [1, 3])
def test_memory_reads_as_a_folder_does(memory: str, tmp_path: Path, parts: int) -> None:
    stores.write(memory, parts=parts)
    stores.write(tmp_path / "s", parts=parts)
    assert_same_reading(open_store(memory), open_store(tmp_path / "s"))


def test_file_urls_are_folders(folder: Path) -> None:
    store = open_store(f"file://{folder}")
    assert (store.path, len(store)) == (folder, 12)


def test_opening_a_finished_store_asks_for_no_shard_and_no_listing(
    bucket: Bucket, folder: Path
) -> None:
    url = bucket.upload(folder, "s")
    bucket.requests.clear()
    assert len(open_store(url)) == 12
    asked = [path for _, path in bucket.requests]
    assert not [path for path in asked if "shards" in path or "list-type" in path]
    assert len(asked) <= 7


def test_opening_an_unfinished_store_lists_once_and_reads_ends_of_shards(bucket: Bucket) -> None:
    url = f"{bucket.url}/s"
    stores.write(url, shards=(0, 2), seal=False)
    with pytest.raises(IncompleteStoreError, match=r"^s3://a-bucket/s: holds 8 of 12 rows"):
        open_store(url)
    bucket.requests.clear()
    store = open_store(url, allow_partial=True)
    listed = [path for _, path in bucket.requests if "list-type" in path and "DONE" not in path]
    assert len(listed) == 1
    assert store.sequence_rows.tolist() == [0, 1, 2, 7, 8, 9, 10, 11]
    assert not list(store.cache.folder.glob("shards/*")), "a shard was fetched"


def test_counting_a_bucket_again_asks_nothing(bucket: Bucket, folder: Path) -> None:
    url = bucket.upload(folder, "s")
    first = open_store(url).token_counts
    store = open_store(url)
    assert len(store) == 12
    bucket.requests.clear()
    assert store.token_counts.tolist() == first.tolist()
    assert bucket.requests == []


def test_a_damaged_count_in_the_cache_is_made_again(bucket: Bucket, folder: Path) -> None:
    """One flipped bit of it gave every sequence behind the place of another, without a word."""
    url = bucket.upload(folder, "s")
    store = open_store(url)
    counts = store.token_counts
    (kept,) = (store.cache.folder / "sequences").iterdir()
    whole = kept.read_bytes()
    for at in (0, 9, len(whole) - 1):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert open_store(url).token_counts.tolist() == counts.tolist()
        assert kept.read_bytes() == whole
    for odd in (b"", whole[:-1], whole + b"x"):
        kept.write_bytes(odd)
        assert open_store(url).token_counts.tolist() == counts.tolist()


def test_a_shard_is_fetched_once_whatever_is_read(bucket: Bucket, folder: Path) -> None:
    url = bucket.upload(folder, "s")
    bucket.requests.clear()
    for _ in range(2):  # a second store of the same process, as a second process has it
        store = open_store(url)
        assert len(store.read_many(range(12))) == 12
        assert [store.text(i).row for i in range(12)] == list(range(12))
    fetched = [path for method, path in bucket.requests if method == "GET" and "/shards/" in path]
    assert sorted(fetched) == sorted(set(fetched))


def test_reading_in_order_fetches_what_comes_next(bucket: Bucket, folder: Path) -> None:
    url = bucket.upload(folder, "s")
    store = open_store(url)
    assert len(store[0]) == 8
    wanted = [f["sha256"] for f in store.shard_facts]
    wait_for(lambda: all(store.cache.has(digest) for digest in wanted))


def wait_for(condition: Callable[[], bool]) -> None:
    import time

    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within ten seconds")


def test_the_tokenizer_is_fetched_once_and_checked(bucket: Bucket, folder: Path) -> None:
    url = bucket.upload(folder, "s")
    here = open_store(url).tokenizer_path
    assert stores.tree(here) == stores.TOKENIZER_FILES
    bucket.requests.clear()
    assert open_store(url).tokenizer_path == here
    assert not [path for _, path in bucket.requests if "tokenizer" in path]
    (here / "special.txt").write_bytes(b"something else")
    assert stores.tree(open_store(url).tokenizer_path) == stores.TOKENIZER_FILES
    bucket.put("s/tokenizer/special.txt", b"something else")
    (here / "special.txt").unlink()
    with pytest.raises(CorruptStoreError, match=r"s3://a-bucket/s/tokenizer/special.txt: expected"):
        _ = open_store(url).tokenizer_path


def _read_in_a_fork(store: LogitStore, queue: Any) -> None:
    queue.put([len(store[i]) for i in range(len(store))])


def test_an_open_store_may_be_forked_and_pickled(bucket: Bucket, folder: Path) -> None:
    store = open_store(bucket.upload(folder, "s"))
    expected = [len(store[i]) for i in range(len(store))]
    again = pickle.loads(pickle.dumps(store))
    assert [len(again[i]) for i in range(len(again))] == expected
    for digest in [f["sha256"] for f in store.shard_facts]:
        store.cache.forget(digest)  # so that the fork must ask the server by itself
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_a_fork, args=(again, queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(60)
    assert child.exitcode == 0


# -- writing -------------------------------------------------------------------------------------


def writer(place: Any, boundaries: tuple[int, ...] = (0, 3, 7, 12), **settings: Any) -> StoreWriter:
    of, plan = stores.spec(**settings), Plan("d" * 64, boundaries)
    return StoreWriter(place, of, plan, stores.TOKENIZER_FILES, {"tokens_per_batch": 64})


def sequences(of: Any, plan: Plan, index: int) -> list[Any]:
    return [s for row in range(*plan.shard_rows(index)) for s in stores.row_sequences(of, row)]


def test_a_capture_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    bucket: Bucket, folder: Path
) -> None:
    url = f"{bucket.url}/s"
    stores.write(url, shards=(1,), seal=False)
    assert writer(url).missing() == [0, 2]
    before = bucket.get("s/shards/00001.zarr.zip")
    bucket.requests.clear()
    stores.write(url)
    assert bucket.tree("s") == stores.tree(folder)
    assert bucket.get("s/shards/00001.zarr.zip") == before
    put = {path for method, path in bucket.requests if method == "PUT"}
    assert "/a-bucket/s/shards/00001.zarr.zip" not in put


def test_of_two_writers_with_other_bytes_the_first_stays(bucket: Bucket) -> None:
    first, second = writer(f"{bucket.url}/s"), writer(f"{bucket.url}/s")
    ours = sequences(first.spec, first.plan, 0)
    assert first.write_shard(0, ours)
    there = bucket.get("s/shards/00000.zarr.zip")
    theirs = [(line, None) for line, _ in ours]  # other records of the same rows
    assert not second.write_shard(0, theirs)
    assert bucket.get("s/shards/00000.zarr.zip") == there
    assert second.missing() == [1, 2]


def _write_all(place: str, queue: Any) -> None:
    stores.write(place)
    queue.put(True)


def test_two_processes_may_write_the_same_store_at_once(bucket: Bucket, folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    url = f"{bucket.url}/s"
    racing = [context.Process(target=_write_all, args=(url, queue)) for _ in range(2)]
    for process in racing:
        process.start()
    for process in racing:
        process.join(60)
    assert [p.exitcode for p in racing] == [0, 0]
    assert bucket.tree("s") == stores.tree(folder)


def test_a_store_of_other_settings_is_not_resumed(memory: str) -> None:
    stores.write(memory, shards=(0,), seal=False)
    with pytest.raises(MismatchError, match=r"begun with other settings: capture.top_k is 6"):
        writer(memory, top_k=5)


def test_a_prefix_with_something_else_is_left_alone(bucket: Bucket) -> None:
    bucket.put("s/notes.txt", b"mine")
    with pytest.raises(MismatchError, match=r"holds something else \(notes.txt\)"):
        writer(f"{bucket.url}/s")
    assert bucket.tree("s") == {"notes.txt": b"mine"}


def test_a_service_that_ignores_conditions_is_refused(bucket: Bucket) -> None:
    bucket.faults.ignore_conditions = True
    with pytest.raises(StorageError, match=r"replaces an object .* \(If-None-Match\)"):
        writer(f"{bucket.url}/s")


def test_large_objects_go_up_in_parts_and_only_once(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitstore.storage.objects._PART_BYTES", 5 * 2**20)
    place, data = RemotePath(f"{bucket.url}/large"), bytes(range(256)) * 45_000
    assert place.create([data[:100], data[100:]])
    assert [p for m, p in bucket.requests if "partNumber=3" in p]
    assert not place.create([data[:-1]])
    assert place.create([data]), "the same bytes are there"
    assert b"".join(place.pieces()) == data


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (
            "hf://datasets/me/store",
            r"folder, then run `logitstore push FOLDER hf://datasets/me/store`",
        ),
        ("https://host/store", r"https:// is for reading. Capture to a folder and copy"),
        ("s3://bucket", r"s3://bucket: is a whole bucket. Name a place in it, as in --out s3://b"),
        ("s3://", r"s3://: names no store"),
        ("simplecache::s3://a/b", r"chained URLs are not read"),
    ],
)
def test_places_that_cannot_be_written_are_named_before_anything_is_done(
    out: str, said: str
) -> None:
    result = CliRunner().invoke(app, ["capture", "no-teacher", "no-data", "--out", out])
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=said):
        raise result.exception


@pytest.mark.usefixtures("fresh_clients")
def test_a_protocol_whose_package_is_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from logitstore.storage import objects

    objects._filesystem.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r"^s3://: needs .* `pip install 'logitstore\[remote\]'`"):
        open_store("s3://bucket/s")
    with pytest.raises(InputError, match=r"^nothing://: is no protocol that fsspec knows"):
        open_store("nothing://bucket/s")


# -- the commands --------------------------------------------------------------------------------


def test_info_show_and_verify_read_urls(bucket: Bucket, folder: Path) -> None:
    url = bucket.upload(folder, "s")
    bucket.requests.clear()
    told = json.loads(CliRunner().invoke(app, ["info", url, "--json"]).stdout)
    local = json.loads(CliRunner().invoke(app, ["info", str(folder), "--json"]).stdout)
    assert told.pop("path") == url
    assert told["uld_within"].pop("worst") is None
    local.pop("path"), local["uld_within"].pop("worst")
    for one, other in zip(told["left_out"], local["left_out"], strict=True):
        # To find a row would fetch a shard.
        assert (one.pop("first_row"), other.pop("first_row")) == (None, 4)
    assert told == local
    assert f"store     {url} (complete)" in CliRunner().invoke(app, ["info", url]).stdout
    shown = CliRunner().invoke(app, ["show", url, "0"])
    assert shown.stdout == CliRunner().invoke(app, ["show", str(folder), "0"]).stdout
    for flags in ([], ["--deep"]):
        result = CliRunner().invoke(app, ["verify", url, "--json", *flags])
        assert (result.exit_code, json.loads(result.stdout)["damaged"]) == (0, [])


def test_verify_reads_the_objects_and_not_the_cache(bucket: Bucket, folder: Path) -> None:
    url = bucket.upload(folder, "s")
    assert len(open_store(url).read_many(range(12))) == 12  # now all shards are in the cache
    damaged = bytearray(bucket.get("s/shards/00001.zarr.zip"))
    damaged[len(damaged) // 2] ^= 1
    bucket.put("s/shards/00001.zarr.zip", bytes(damaged))
    bucket.client.delete_object(Bucket="a-bucket", Key="s/tokenizer/special.txt")
    report = verify_store(store_path(url), jobs=3)
    assert [d.file for d in report.damaged] == ["tokenizer/special.txt", "shards/00001.zarr.zip"]


def test_repair_moves_damaged_objects_aside_and_the_capture_redoes_them(
    bucket: Bucket, folder: Path
) -> None:
    url = bucket.upload(folder, "s")
    bucket.put("s/shards/00001.zarr.zip", b"not a shard")
    report = repair_store(store_path(url))
    assert (report.moved, report.missing_shards) == (
        ["DONE", "index.parquet", "shards/00001.zarr.zip"],
        1,
    )
    moved = bucket.tree("s.quarantine/1")
    assert moved["shards/00001.zarr.zip"] == b"not a shard"
    stores.write(url)
    assert bucket.tree("s") == stores.tree(folder)


def test_no_store_at_an_address(bucket: Bucket) -> None:
    for url in (f"{bucket.url}/nothing", "s3://no-such-bucket/s"):
        with pytest.raises(NotAStoreError, match=f"^{url}: no store.json of a logit store here"):
            open_store(url)
