"""The store inside a store: added, resumed, damaged, copied and shared like any other."""

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import logitstore
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.console.launcher import Ranks
from logitstore.errors import IncompleteStoreError, InputError, MismatchError
from logitstore.info import facts, info_text
from logitstore.moving.merge import merge
from logitstore.moving.subset import subset
from logitstore.store import LogitStore
from logitstore.testing.buckets import Bucket
from logitstore.testing.stores import tree
from tests.kit.boundaries import SETTINGS, inside, run


def test_the_ordinary_records_are_the_same_bytes_with_and_without_a_student(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    alone = run(teacher, place, tmp_path / "s", boundaries_of=None)
    with_student = tree(store.path)
    assert tree(alone.path) == {
        name: data for name, data in with_student.items() if not str(name).startswith("boundaries")
    }
    assert alone.boundaries == {}
    assert alone.digest == store.digest != inside(store).digest


def test_a_finished_store_gets_another_students_boundaries_added(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    run(teacher, place, out, boundaries_of=None)
    run(teacher, place, out)
    assert tree(out) == tree(store.path)
    both = run(teacher, place, out, boundaries_of=str(place / "bpe"))
    assert len(both.boundaries) == 2
    text = info_text(facts(both))
    assert str(place / "bpe") in text
    assert str(place / "unigram") in text
    with pytest.raises(MismatchError, match="has no records at the boundaries of nobody"):
        both.boundaries_of("0" * 64, "nobody")


@pytest.mark.parametrize("lost", ["own shard", "answers", "both", "seals", "header"])
def test_a_capture_that_was_killed_is_resumed_to_the_same_bytes(
    teacher: Path, place: Path, store: LogitStore, lost: str, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    shutil.copytree(store.path, out)
    folder = out / "boundaries" / inside(store).path.name
    for path in {
        "own shard": [out / "DONE", out / "shards" / "00001.zarr.zip"],
        "answers": [folder / "DONE", folder / "shards" / "00000.zarr.zip"],
        "both": [
            out / "DONE",
            folder / "DONE",
            folder / "index.parquet",
            folder / "shards" / "00002.zarr.zip",
            out / "shards" / "00001.zarr.zip",
        ],
        "seals": [out / "DONE", folder / "DONE"],
        "header": [out / "DONE", folder / "DONE", folder / "index.parquet", folder / "store.json"],
    }[lost]:
        path.unlink()
    if lost == "answers":
        (student,) = store.boundaries
        with pytest.raises(IncompleteStoreError, match="--boundaries-of` again"):
            logitstore.open_store(out).boundaries_of(student)
    run(teacher, place, out)
    assert tree(out) == tree(store.path)


def test_ranks_and_claiming_workers_write_the_same_stores(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    from logitstore.capture.job import run_capture
    from logitstore.capture.settings import CaptureSettings

    settings = CaptureSettings(**SETTINGS, boundaries_of=str(place / "unigram"))
    data, out = str(place / "rows.jsonl"), tmp_path / "ranks"
    threads = [
        threading.Thread(
            target=run_capture,
            args=(str(teacher), data, out, settings),
            kwargs={"ranks": Ranks(rank, 2)},
        )
        for rank in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert tree(out) == tree(store.path)
    run(teacher, place, tmp_path / "claims", claim=True)
    assert tree(tmp_path / "claims") == tree(store.path)


def test_in_a_bucket_it_is_the_same_objects(
    teacher: Path, place: Path, store: LogitStore, bucket: Bucket
) -> None:
    settings = SETTINGS | {"boundaries_of": str(place / "unigram")}
    data = str(place / "rows.jsonl")
    other = logitstore.capture(teacher, data, f"{bucket.url}/s", **settings)
    assert bucket.tree("s") == tree(store.path)
    assert (inside(other)[3].token_ids == inside(store)[3].token_ids).all()
    assert verify_store(other.path, deep=True).damaged == []


def test_damage_in_it_is_found_and_captured_again(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    from logitstore.capture.again import capture_again
    from logitstore.storage.paths import store_path

    out = tmp_path / "s"
    shutil.copytree(store.path, out)
    folder = out / "boundaries" / inside(store).path.name
    shard = folder / "shards" / "00001.zarr.zip"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = verify_store(out).damaged
    assert [d.file for d in damaged] == [f"boundaries/{folder.name}/shards/00001.zarr.zip"]
    report = repair_store(out)
    assert not report.is_complete
    assert (out / "DONE").exists()
    assert report.missing_shards == 1
    capture_again(store_path(out))
    assert tree(out) == tree(store.path)
    assert verify_store(out, deep=True).damaged == []


def test_a_store_that_belongs_elsewhere_is_not_taken(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    other = run(teacher, place, tmp_path / "other", top_k=4, boundaries_of=None)
    shutil.copytree(store.path / "boundaries", other.path / "boundaries")
    with pytest.raises(MismatchError, match="holds the records of another store"):
        _ = logitstore.open_store(other.path).boundaries
    assert "describes other records" in verify_store(other.path).damaged[0].reason


def test_a_copy_of_rows_says_that_it_leaves_the_boundaries_behind(
    store: LogitStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        few = subset(store.path, "0:5", tmp_path / "few")
    assert few.boundaries == {}
    assert "stays behind. Its records at the boundaries of" in caplog.text
    with pytest.raises(InputError, match="belongs to the store around it"):
        subset(inside(store).path, "0:5", tmp_path / "inner")
    copy = shutil.copytree(inside(store).path, tmp_path / "copy")
    with pytest.raises(InputError, match="belongs to the store around it"):
        merge([inside(store).path, copy], tmp_path / "merged")


def events(out: Path) -> Iterator[dict[str, Any]]:
    for line in out.with_name(f"{out.name}.journal.jsonl").read_text().splitlines():
        yield json.loads(line)


def test_the_journal_beside_the_store_has_what_was_written_inside_it(store: LogitStore) -> None:
    within = [e for e in events(Path(str(store.path))) if e.get("within")]
    assert {e["event"] for e in within} == {"shard", "sealed"}
    assert not list((Path(str(store.path)) / "boundaries").glob("*journal*"))
