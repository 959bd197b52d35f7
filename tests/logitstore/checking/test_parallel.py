"""A check of several shards at a time finds what one at a time does; an interrupted one goes on."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from logitstore.checking import in_parallel, shard_check, verify
from logitstore.checking.shard_check import ShardCheck
from logitstore.checking.verify import verify_store
from logitstore.cli.app import app
from logitstore.errors import InputError
from logitstore.storage import folder, objects
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket
from tests.kit.made_stores import put


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three shards."""
    put(tmp_path / "s", stores.spec())
    return tmp_path / "s"


def shard_of(store: Path, index: int) -> Path:
    return store / "shards" / f"{index:05}.zarr.zip"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("deep", [False, True])
def test_several_at_a_time_find_the_same_in_the_same_order(
    store: Path, monkeypatch: pytest.MonkeyPatch, deep: bool
) -> None:
    monkeypatch.setattr(verify, "_WORTH_A_PROCESS", 1)
    begun: list[int] = []
    pool = in_parallel._pool
    monkeypatch.setattr(in_parallel, "_pool", lambda c, jobs: begun.append(jobs) or pool(c, jobs))
    for damaged in ((), (0, 2)):
        for index in damaged:
            flip(shard_of(store, index))
        one, several = (verify_store(store, deep=deep, jobs=jobs) for jobs in (1, 3))
        assert one == several
        assert [d.file[-14:-9] for d in one.damaged] == [f"{i:05}" for i in damaged]
    assert begun == [3, 3]


def test_small_stores_are_checked_in_this_process(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_parallel, "_pool", None)
    assert verify_store(store, deep=True, jobs=64).damaged == []


def test_a_process_that_was_killed_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise BrokenProcessPool

    monkeypatch.setattr(in_parallel, "_pool", lambda _check, jobs: Killed(jobs))
    with pytest.raises(InputError, match=r"was killed, perhaps for memory\. .*--jobs 1\.") as told:
        verify_store(store, jobs=3)
    assert told.value.kind == "out-of-memory"


class Looked(list[int]):
    """The shards that are looked at, and after which of them a check is interrupted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stops_at: int | None = None
        check = ShardCheck.__call__

        def looked(this: ShardCheck, index: int, line: Any) -> Any:
            if index == self.stops_at:
                raise KeyboardInterrupt
            self.append(index)
            return check(this, index, line)

        patch.setattr(shard_check.ShardCheck, "__call__", looked)

    def interrupted(self, store: Path | str, at: int, **how: Any) -> None:
        self.stops_at = at
        with pytest.raises(KeyboardInterrupt):
            verify_store(store, **how)
        self.stops_at = None
        self.clear()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Looked:
    monkeypatch.setattr(folder, "TICK_NS", 0)  # as if the stores had been there for seconds
    return Looked(monkeypatch)


def test_an_interrupted_check_goes_on_with_what_it_has_not_seen(
    store: Path, looked: Looked
) -> None:
    looked.interrupted(store, 2, deep=True)
    looked.interrupted(store, 2, deep=True, resume=True)
    report = verify_store(store, deep=True, resume=True)
    assert looked == [2]
    assert (report.shards, report.rows, report.checked_before, report.damaged) == (3, 12, 2, [])
    looked.clear()
    assert verify_store(store, deep=True, resume=True).checked_before == 0  # it had ended
    assert looked == [0, 1, 2]


def test_it_is_believed_only_if_asked_for_and_only_of_the_same_check(
    store: Path, looked: Looked
) -> None:
    for how in ({"deep": True}, {"resume": True, "deep": True}):
        looked.interrupted(store, 2)
        assert verify_store(store, **how).checked_before == 0
        assert looked == [0, 1, 2]
        looked.clear()


def test_what_was_written_to_since_or_was_damaged_is_looked_at_again(
    store: Path, looked: Looked
) -> None:
    flip(shard_of(store, 1))
    looked.interrupted(store, 2)
    copy = store.with_name("copy")
    shutil.copyfile(shard_of(store, 0), copy)
    copy.replace(shard_of(store, 0))  # the same bytes, and perhaps others
    report = verify_store(store, resume=True)
    assert looked == [0, 1, 2]
    assert [d.file for d in report.damaged] == ["shards/00001.zarr.zip"]


def test_what_was_written_in_the_last_seconds_is_looked_at_again(
    store: Path, looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time may not tell it from the next write."""
    monkeypatch.setattr(folder, "TICK_NS", 10**12)
    looked.interrupted(store, 2)
    assert verify_store(store, resume=True).checked_before == 0


def test_a_check_in_a_bucket_goes_on_but_for_objects_that_were_written_anew(
    store: Path, bucket: Bucket, looked: Looked
) -> None:
    url = bucket.upload(store, "s")
    looked.interrupted(url, 2, deep=True)
    assert verify_store(url, deep=True, resume=True).checked_before == 2
    assert looked == [2]
    looked.interrupted(url, 2)
    data = bytearray(shard_of(store, 1).read_bytes())
    data[len(data) // 2] ^= 4
    bucket.put("s/shards/00001.zarr.zip", bytes(data))
    report = verify_store(url, resume=True)
    assert looked == [1, 2]
    assert [d.file for d in report.damaged] == ["shards/00001.zarr.zip"]


def test_a_bucket_that_says_nothing_of_its_objects_cannot_be_gone_on_with(
    store: Path, bucket: Bucket, looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.upload(store, "s")
    monkeypatch.setattr(objects, "_OF_CONTENT", ("generation",))
    looked.interrupted(url, 2)
    with pytest.raises(InputError, match=r"a-bucket/s: --resume knows by .*ETag.* Leave it out"):
        verify_store(url, resume=True)


@pytest.mark.slow
def test_several_at_a_time_find_the_same_in_a_bucket(
    store: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_WORTH_A_PROCESS", 1)
    flip(shard_of(store, 2))
    url = bucket.upload(store, "s")
    one, several = (verify_store(url, deep=True, jobs=jobs) for jobs in (1, 2))
    assert one == several
    assert [d.file for d in one.damaged] == ["shards/00002.zarr.zip"]


def test_notes_that_were_cut_off_or_are_none_cost_a_second_look(
    store: Path, tmp_path: Path, looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    for spoil in (lambda raw: raw[:-3], lambda _: b"null\n", lambda _: b"[0]\n\xff"):
        looked.interrupted(store, 2)
        (file,) = (tmp_path / "cache" / "verified").glob("*.jsonl")
        file.write_bytes(spoil(file.read_bytes()))
        report = verify_store(store, resume=True)
        assert len(looked) == 3 - report.checked_before >= 2
        looked.clear()


def test_where_nothing_can_be_noted_a_check_runs_all_the_same(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "file"))
    assert verify_store(store).damaged == []


def test_flags_that_cannot_be_obeyed_are_rejected(store: Path) -> None:
    found = CliRunner().invoke(app, ["verify", str(store), "--jobs", "0"])
    assert isinstance(found.exception, InputError)
    assert "--jobs is 0, expected 1 or more." in str(found.exception)


def test_the_program_says_what_was_checked_before(store: Path, looked: Looked) -> None:
    looked.interrupted(store, 2, jobs=3)
    found = CliRunner().invoke(app, ["verify", str(store), "--resume", "--jobs", "1"])
    assert "3 shards, 12 rows: whole (2 of them were checked before)" in found.output
