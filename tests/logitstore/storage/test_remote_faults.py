"""What networks, services and disks do to a store in a bucket, and what its user sees of it."""

import errno
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from logitstore import open_store
from logitstore.errors import CorruptStoreError, InputError, StorageError
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage import retry
from logitstore.storage.objects import RemotePath
from logitstore.storage.retry import is_transient, retrying
from logitstore.store import LogitStore
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket, forget_clients
from tests.logitstore.storage.test_remote import sequences, writer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 12 rows in 3 shards."""
    path = tmp_path_factory.mktemp("stores") / "s"
    stores.write(path)
    return path


@pytest.fixture
def url(bucket: Bucket, folder: Path) -> str:
    """The same in the bucket."""
    address = bucket.upload(folder, "s")
    bucket.requests.clear()
    return address


def read_all(store: LogitStore) -> list[int]:
    return [len(store[i]) for i in range(len(store))]


# -- transient faults ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["503", "500", "refused", "lost", "cut"])
def test_reading_survives_faults_that_pass(
    bucket: Bucket, url: str, folder: Path, kind: str
) -> None:
    for part in ("store.json", "index.parquet", "shards/00001", "DONE"):
        bucket.fail("GET", part, kind, times=2)
    assert read_all(open_store(url)) == read_all(open_store(folder))
    assert bucket.unmet == 0


@pytest.mark.parametrize("kind", ["503", "500", "409", "refused", "lost"])
def test_writing_survives_faults_that_pass(bucket: Bucket, folder: Path, kind: str) -> None:
    for part in ("store.json", "shards/00001", "index.parquet", "DONE"):
        bucket.fail("PUT", f"s/{part}", kind, times=2)
    bucket.fail("PUT", "tokenizer", kind)
    stores.write(f"{bucket.url}/s")
    assert bucket.tree("s") == stores.tree(folder)
    assert bucket.unmet == 0


def test_an_object_that_exists_after_a_lost_answer_is_a_success(bucket: Bucket) -> None:
    w = writer(f"{bucket.url}/s")
    bucket.fail("PUT", "shards/00000", "lost")
    assert w.write_shard(0, sequences(w.spec, w.plan, 0))
    puts = [path for method, path in bucket.requests if method == "PUT" and "shards" in path]
    assert len(puts) == 2, "the put was not repeated"


def test_an_object_that_exists_after_a_lost_answer_may_be_a_twins(bucket: Bucket) -> None:
    w = writer(f"{bucket.url}/s")
    ours = sequences(w.spec, w.plan, 0)
    assert w.write_shard(0, [(line, None) for line, _ in ours])
    bucket.fail("PUT", "shards/00000", "refused")
    assert not w.write_shard(0, ours)


@pytest.mark.parametrize("step", ["partNumber=2", "uploadId"])
@pytest.mark.parametrize("kind", ["503", "lost"])
def test_an_upload_in_parts_survives_faults_that_pass(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, step: str, kind: str
) -> None:
    monkeypatch.setattr("logitstore.storage.objects._PART_BYTES", 5 * 2**20)
    place, data = RemotePath(f"{bucket.url}/large"), bytes(range(256)) * 45_000
    original = bucket.faults._kind

    def of_query(method: str, path: str, query: str) -> str | None:
        return original(method, f"{path}?{query}", "")

    monkeypatch.setattr(bucket.faults, "_kind", of_query)
    bucket.fail("PUT" if step.startswith("part") else "POST", step, kind)
    assert place.create([data])
    assert b"".join(place.pieces()) == data
    assert not place.create([data[:-1]])


def test_a_fault_that_stays_is_one_error_and_nothing_is_there(bucket: Bucket, url: str) -> None:
    bucket.fail("GET", "shards/00001", "503", times=1000)
    store = open_store(url)
    with pytest.raises(
        StorageError,
        match=r"^s3://a-bucket/s/shards/00001.zarr.zip: the object store refuses: 5 attempts "
        r"failed in \d+ s, .* run the same command again\.$",
    ):
        read_all(store)
    bucket.fail("PUT", "w/shards/00000", "503", times=1000)
    w = writer(f"{bucket.url}/w")
    with pytest.raises(
        StorageError, match=r"^s3://a-bucket/w/shards/00000.zarr.zip: the object st"
    ):
        w.write_shard(0, sequences(w.spec, w.plan, 0))
    assert w.missing() == [0, 1, 2]


def test_pauses_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    monkeypatch.setattr(retry.random, "uniform", lambda a, b: b)
    with pytest.raises(StorageError, match=r"9 attempts failed in \d+ s, the last"):
        retrying(_fails_with(ConnectionResetError("gone")), "s3://b/x")
    assert slept == sorted(slept)
    assert 30 < sum(slept) < 120


def _fails_with(error: Exception) -> Any:
    def action() -> None:
        raise error

    return action


def test_what_will_not_pass_is_not_tried_again() -> None:
    def http(status: int) -> Exception:
        error = OSError(errno.EIO, "answer")
        error.__cause__ = type("ClientError", (Exception,), {})()
        error.__cause__.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
        return error

    statuses = (400, 401, 403, 404, 408, 409, 412, 429, 500, 503)
    assert [s for s in statuses if is_transient(http(s))] == [408, 409, 429, 500, 503]
    passing = [TimeoutError(), ConnectionError(), OSError(errno.ECONNRESET, "")]
    staying = [FileNotFoundError(), PermissionError(), ValueError(), OSError(errno.ENOSPC, "")]
    assert all(map(is_transient, passing))
    assert not any(map(is_transient, staying))


# -- wrong credentials ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT"])
def test_wrong_credentials_are_one_error_at_once(bucket: Bucket, url: str, method: str) -> None:
    bucket.fail(method, "", "403", times=1000)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"^s3://a-bucket/\S+: access was refused \(.*AWS_"):
        stores.write(f"{bucket.url}/new")
    if method != "PUT":
        with pytest.raises(StorageError, match="access was refused"):
            open_store(url)
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("fresh_clients")
def test_no_credentials_are_one_error(
    bucket: Bucket, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_clients()
    with pytest.raises(
        StorageError, match=r"^s3://a-bucket/s/store.json: access was refused \(NoCredentialsErr"
    ):
        open_store(url)


@pytest.mark.usefixtures("fresh_clients")
def test_no_server_at_the_endpoint_is_one_error(
    bucket: Bucket, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(retry, "PAUSES_S", (0.01,))
    forget_clients()
    with pytest.raises(StorageError, match=r"the object store refuses: 2 attempts failed in 0 s"):
        open_store(url)


# -- objects that change under the reader --------------------------------------------------------


def test_an_object_that_changed_is_refused(bucket: Bucket, url: str) -> None:
    store = open_store(url)
    assert len(store) == 12
    whole = bucket.get("s/shards/00001.zarr.zip")
    for other in (whole[:-1], whole[:5000] + b"\0" + whole[5001:], whole + b"\0"):
        bucket.put("s/shards/00001.zarr.zip", other)
        with pytest.raises(
            CorruptStoreError,
            match=r"00001.zarr.zip: the object is not the one this store was sealed with \(found",
        ):
            store[4]
        assert not list(store.cache.folder.glob("shards/*"))
    for other in (whole[:-1], whole[:9], b""):
        bucket.put("s/shards/00001.zarr.zip", other)
        with pytest.raises(CorruptStoreError, match=r"^s3://\S+00001.zarr.zip: rows 3 to 6: .*off"):
            open_store(url).skim(1)
    bucket.put("s/shards/00001.zarr.zip", whole)
    assert len(store[4]) == 0, "the right bytes again are read again"


def test_a_store_that_was_made_again_is_noticed(bucket: Bucket, url: str, tmp_path: Path) -> None:
    store = open_store(url)
    assert len(store) == 12
    stores.write(tmp_path / "other", stores.spec(top_k=5))
    bucket.upload(tmp_path / "other", "s")
    with pytest.raises(CorruptStoreError, match="not the one this store was sealed with"):
        store[0]
    assert len(open_store(url)[0]) == 8


def test_a_missing_object_is_named(bucket: Bucket, url: str) -> None:
    bucket.client.delete_object(Bucket="a-bucket", Key="s/shards/00002.zarr.zip")
    store = open_store(url)
    assert len(store[0]) == 8
    with pytest.raises(CorruptStoreError, match=r"^s3://\S+00002.zarr.zip: the object is missing"):
        store[11]
    bucket.client.delete_object(Bucket="a-bucket", Key="s/index.parquet")
    with pytest.raises(CorruptStoreError, match=r"index.parquet: .*logitstore repair s3://"):
        len(open_store(url))


# -- the cache -----------------------------------------------------------------------------------


def cached(store: LogitStore) -> list[Path]:
    return sorted(store.cache.folder.glob("shards/*.zarr.zip"))


def digest_and_size(store: LogitStore, index: int) -> tuple[str, int]:
    facts = store.shard_facts[index]
    return facts["sha256"], facts["file_bytes"]


def test_an_interrupted_download_is_never_used(
    bucket: Bucket, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitstore.storage.objects._READ_BYTES", 1000)
    store = open_store(url)
    digest, size = digest_and_size(store, 0)
    original, left = RemotePath.read_range, [3]

    def dies(self: RemotePath, start: int, stop: int) -> bytes:
        if "/shards/" in self.url:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return original(self, start, stop)

    monkeypatch.setattr(RemotePath, "read_range", dies)
    with pytest.raises(KeyboardInterrupt):
        store[0]
    assert list((store.cache.folder / "shards").iterdir()) == []
    left[0] = 10**9
    folder = store.cache.folder / "shards"
    (folder / f".tmp-{digest}-1-dead").write_bytes(b"of a process that was killed")
    assert len(store[0]) == 8
    assert not (folder / f".tmp-{digest}-1-dead").exists()
    assert (folder / f"{digest}.zarr.zip").stat().st_size == size


def test_a_copy_that_is_damaged_is_fetched_again(bucket: Bucket, url: str, folder: Path) -> None:
    store = open_store(url)
    expected = read_all(store)
    for path in cached(store):
        data = bytearray(path.read_bytes())
        data[40:2000] = bytes(1960)
        path.write_bytes(bytes(data))
    assert read_all(open_store(url)) == expected
    for path in cached(store):
        path.write_bytes(path.read_bytes()[:-1])
    assert read_all(open_store(url)) == expected


def test_the_cache_keeps_to_its_limit_and_drops_the_least_recent(bucket: Bucket, url: str) -> None:
    sizes = [f["file_bytes"] for f in open_store(url).shard_facts]
    limit = sizes[0] + sizes[2] + 10
    store = open_store(url, cache_bytes=limit)
    _ = store[0]
    os.utime(store.cache._path(digest_and_size(store, 0)[0]), (1, 1))
    names = {digest_and_size(store, i)[0]: i for i in range(3)}

    def held() -> set[int]:
        return {names[p.name.removesuffix(".zarr.zip")] for p in cached(store)}

    store.cache.open(store.path / "shards/00002.zarr.zip", *digest_and_size(store, 2)).close()  # type: ignore[operator,arg-type]
    assert held() == {0, 2}
    store.cache.open(store.path / "shards/00001.zarr.zip", *digest_and_size(store, 1)).close()  # type: ignore[operator,arg-type]
    assert 0 not in held()
    assert sum(p.stat().st_size for p in cached(store)) <= limit


def test_what_is_evicted_under_a_reader_stays_readable(bucket: Bucket, url: str) -> None:
    store = open_store(url, cache_bytes=0)
    first = store[0]
    for _ in range(2):
        assert read_all(store) == read_all(open_store(url, cache_bytes=0))
        store.cache.make_room(0)
    assert cached(store) == []
    assert (store[0].token_ids == first.token_ids).all()


def test_threads_and_processes_that_race_for_a_shard_fetch_it_once(
    bucket: Bucket, url: str
) -> None:
    asked = open_store(url)
    assert len(asked) == 12
    bucket.requests.clear()
    found, threads = [], []
    children = [_fork_reader(url) for _ in range(3)]
    for _ in range(4):
        store = open_store(url)
        threads.append(threading.Thread(target=lambda s=store: found.append(len(s[0]))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert found == [8] * 4
    fetched = [p for m, p in bucket.requests if m == "GET" and "shards/00000" in p]
    assert len(fetched) == 1


def _fork_reader(url: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if len(open_store(url)[0]) == 8 else 1)
        finally:
            os._exit(2)
    return child


def test_a_full_disk_is_one_error(
    bucket: Bucket, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = open_store(url)
    monkeypatch.setattr("logitstore.reading.shard_cache.os.fsync", full)
    said = re.escape(f"{store.cache.folder}: the cache for shards of buckets: the disk is full")
    with pytest.raises(StorageError, match=f"^{said}. Make room.* LOGITSTORE_CACHE, then run"):
        store[0]
    assert list((store.cache.folder / "shards").iterdir()) == []


def test_a_disk_smaller_than_the_limit_is_used_as_far_as_it_goes(
    bucket: Bucket, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(url)
    _ = store[11]
    wait = cached(store)
    assert wait
    original = os.fsync

    def full(descriptor: int) -> None:
        if len(cached(store)) > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    monkeypatch.setattr("logitstore.reading.shard_cache.os.fsync", full)
    assert len(open_store(url)[4 - 1]) == 8


def test_a_read_only_cache_is_one_error(bucket: Bucket, url: str, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    store = open_store(url, cache=blocked / "cache")
    with pytest.raises(StorageError, match=r"a file/cache: the cache for shards of buckets: .*LOG"):
        store[0]
    with pytest.raises(StorageError, match=r"a file/cache: the cache for shards of buckets: .*LOG"):
        _ = store.tokenizer_path
    assert store.token_counts.sum() == 68, "counting only wants the cache"
    for code, said in ((errno.EROFS, "is read-only"), (errno.EACCES, "no permission")):
        assert said in str(ShardCache(tmp_path).explain(OSError(code, os.strerror(code))))


def test_the_cache_is_chosen_by_argument_then_environment_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LOGITSTORE_CACHE", raising=False)
    assert ShardCache.chosen() == ShardCache(tmp_path / "logitstore", 64 * 2**30)
    monkeypatch.setenv("LOGITSTORE_CACHE", "/there")
    monkeypatch.setenv("LOGITSTORE_CACHE_BYTES", "1000")
    assert ShardCache.chosen() == ShardCache(Path("/there"), 1000)
    assert ShardCache.chosen("/here", 5) == ShardCache(Path("/here"), 5)
    monkeypatch.setenv("LOGITSTORE_CACHE_BYTES", "lots")
    with pytest.raises(InputError, match=r"LOGITSTORE_CACHE_BYTES: expected a number of bytes, fo"):
        ShardCache.chosen()


def test_a_damaged_copy_that_was_evicted_is_not_blamed_on_the_bucket(
    bucket: Bucket, url: str
) -> None:
    expected, text = read_all(open_store(url)), open_store(url).text(0)
    store = open_store(url)
    assert len(store[0]) == 8
    for path in cached(store):  # as a disk does it: the open file is what is damaged
        data = path.read_bytes()
        path.write_bytes(data[:40] + bytes(len(data) - 140) + data[-100:])
        path.unlink()
    assert store.text(0) == text  # of the damaged file: the records are kept from before
    assert read_all(store) == expected
