"""A store as an ordinary zarr group: xarray opens it in a line, and nothing is lost on the way."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr
from s3fs import S3FileSystem
from typer.testing import CliRunner

from logitstore.cli.app import app
from logitstore.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    InputError,
    LogitStoreError,
    MismatchError,
    StorageError,
)
from logitstore.format.fields import FIELDS
from logitstore.format.spec import StoreSpec
from logitstore.moving import zarr_columns, zarr_export
from logitstore.moving.zarr_columns import columns_of
from logitstore.moving.zarr_export import export_zarr
from logitstore.store import LogitStore, open_store
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket
from tests.kit.made_stores import put
from tests.kit.paths import ROOT

EVERYTHING = stores.spec(
    temperatures=(2.0, 0.5), logit_std=True, draws=5, max_tail=0.1, top_k=20, chunks=(3, 7)
)
SPECS = {
    "plain": stores.spec(),
    "values only": stores.spec(ids=False),
    "every block": EVERYTHING,
    "draws, first layout": stores.spec(draws=5, layout=1),
    "compact": stores.spec(codec="compact", temperatures=(4.0,), draws=3),
    "scalars missing": stores.spec(missing=("entropy", "token_logprob")),
    "no entries": stores.spec(top_k=0, draws=3),
}
PER_RECORD = ("token_ids", "byte_starts", "byte_lengths", "token_logprob", "tail_logmass")
PER_RECORD += ("entropy", "entry_count", "lognorm", "logit_std", "lognorm_std", "draw_count")
LISTS = {
    "entry_ids": "entry",
    "entry_logprobs": "entry",
    "sample_ids": "draw",
    "sample_counts": "draw",
}


def test_every_field_of_a_record_is_described() -> None:
    assert set(zarr_columns.DESCRIPTIONS) == {field.name for field in FIELDS}


def exported(tmp_path: Path, of: StoreSpec | None = None, **how: Any) -> LogitStore:
    put(tmp_path / "s", of, **how)
    export_zarr(tmp_path / "s", tmp_path / "e")
    return open_store(tmp_path / "s")


def assert_same(store: LogitStore, opened: xr.Dataset) -> None:
    """Every field of every sequence, found in the way that `how_to_read` says."""
    assert opened.sizes["sequence"] == len(store)
    data = {str(name): each.values for name, each in opened.variables.items()}
    seen = set()
    for i in range(len(store)):
        records, text = store[i], store.text(i)
        first = int(data["record_start"][i])
        span = slice(first, first + int(data["record_count"][i]))
        assert span.stop - span.start == len(records)
        for name in PER_RECORD:
            if getattr(records, name) is not None:
                np.testing.assert_array_equal(data[name][span], getattr(records, name), name)
                seen.add(name)
        for name, kind in LISTS.items():
            if getattr(records, name) is not None:
                starts, counts = data[f"{kind}_start"][span], data[f"{kind}_count"][span]
                flat = [
                    data[name][int(a) : int(a) + int(n)]
                    for a, n in zip(starts, counts, strict=True)
                ]
                joined = np.concatenate([np.zeros(0, data[name].dtype), *flat])
                np.testing.assert_array_equal(joined, getattr(records, name), name)
                seen.add(name)
        assert_same_text(data, i, text)
    others = {c.name for c in columns_of(store.spec) if c.axis in ("record", "entry", "draw")}
    assert seen | {"entry_start", "draw_start"} >= others


def assert_same_text(data: dict[str, np.ndarray[Any, Any]], i: int, text: Any) -> None:
    def listed(name: str, start: str, count: str) -> bytes:
        first = int(data[start][i])
        return data[name][first : first + int(data[count][i])].tobytes()

    assert (int(data["row"][i]), int(data["part"][i])) == (text.row, text.part)
    assert int(data["supervised_start"][i]) == text.supervised_start
    assert listed("text", "text_start", "text_bytes") == text.supervised_bytes
    line = json.loads(listed("lines", "line_start", "line_bytes"))
    assert line["segments"] == [s._asdict() for s in text.segments]
    assert (line["status"], line["messages"]) == (text.status, text.messages)


@pytest.mark.parametrize("name", SPECS)
def test_xarray_opens_it_in_a_line_and_reads_what_the_store_reads(
    tmp_path: Path, name: str
) -> None:
    store = exported(tmp_path, SPECS[name])
    assert_same(store, xr.open_zarr(tmp_path / "e").load())


def test_parts_of_rows_and_old_stores_too(tmp_path: Path) -> None:
    assert_same(exported(tmp_path, parts=3), xr.open_zarr(tmp_path / "e").load())
    golden = ROOT / "tests" / "golden" / "v1-draws"
    export_zarr(golden, tmp_path / "g")
    assert_same(open_store(golden), xr.open_zarr(tmp_path / "g").load())


@pytest.mark.parametrize(("length", "blocks"), [(3, 8), (5, 2), (100, 1), (7, 1)])
def test_blocks_do_not_change_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, blocks: int
) -> None:
    """Arrays shorter than a chunk, than a block, whole blocks, and a rest."""
    monkeypatch.setattr(zarr_export, "_CHUNK_LENGTHS", {})
    monkeypatch.setattr(zarr_export, "_CHUNK_LENGTH", length)
    monkeypatch.setattr(zarr_export, "_CHUNKS_OF_BLOCK", blocks)
    monkeypatch.setattr(zarr_columns, "_BATCH_RECORDS", 9)
    store = exported(tmp_path, stores.spec(temperatures=(2.0, 0.5)), boundaries=(0, 1, 3))
    data = xr.open_zarr(tmp_path / "e")
    assert_same(store, data.load())
    array: Any = zarr.open_array(tmp_path / "e" / "entropy", mode="r")
    assert array.chunks == (min(length, len(data.record)),)


def test_dask_reads_it_lazily_a_chunk_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_export, "_CHUNK_LENGTHS", {})
    monkeypatch.setattr(zarr_export, "_CHUNK_LENGTH", 50)
    store = exported(tmp_path)
    data = xr.open_zarr(tmp_path / "e")
    assert isinstance(data.entry_logprobs.data, dask.array.Array)
    assert set(data.chunks["entry"][:-1]) == {50}  # one length along a dimension, or this raises
    with dask.config.set(scheduler="threads", num_workers=2):
        mass = float(np.exp(data.entry_logprobs).sum().compute())
    expected = sum(
        float(np.exp(store[i].entry_logprobs, dtype=np.float64).sum()) for i in range(12)
    )
    assert mass == pytest.approx(expected, rel=1e-5)


def test_a_stranger_learns_from_the_group_what_it_is(tmp_path: Path) -> None:
    store = exported(tmp_path, EVERYTHING)
    data = xr.open_zarr(tmp_path / "e")
    about = data.attrs["logitstore"]
    assert about["content"] == vars(store.spec)
    assert (about["rows"], about["provenance"]) == (12, store.provenance)
    assert about["fidelity"]["kl_mean"] == store.fidelity.kl_mean
    assert any("predicted its token" in line for line in data.attrs["how_to_read"])
    for name in data.variables:
        assert data[name].attrs["long_name"], name
    assert data.entropy.attrs["units"] == "nats"
    assert data.entry_count.attrs["sample_dimension"] in data.entry_ids.dims
    assert data.lognorm.dims == ("record", "temperature")
    assert data.temperature.values.tolist() == [2.0, 0.5]
    group = zarr.open_group(tmp_path / "e" / "tokenizer", mode="r")
    found = {name: np.asarray(a[:]).tobytes() for name, a in group.arrays()}
    assert found == stores.TOKENIZER_FILES


def test_what_an_import_did_not_say_is_marked(tmp_path: Path) -> None:
    exported(tmp_path, stores.spec(missing=("entropy", "token_logprob")))
    data = xr.open_zarr(tmp_path / "e")
    marked = [n for n in data.variables if "not to be used" in data[n].attrs["long_name"]]
    assert sorted(marked) == ["entropy", "token_logprob"]
    assert np.isnan(data.entropy).all()


def test_every_chunk_has_a_checksum_and_zeros_are_written(tmp_path: Path) -> None:
    exported(tmp_path)
    for path in sorted((tmp_path / "e").rglob("zarr.json")):
        metadata = json.loads(path.read_text())
        if metadata["node_type"] == "array":
            [sharding] = metadata["codecs"]
            assert sharding["configuration"]["codecs"][-1] == {"name": "crc32c"}
            assert list((path.parent / "c").iterdir()), path
    chunk = next((tmp_path / "e" / "entropy" / "c").iterdir())
    data = bytearray(chunk.read_bytes())
    data[20] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path / "e" / "entropy", mode="r")[:]


def test_memory_is_bounded_by_blocks_not_by_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_export, "_CHUNK_LENGTHS", {})
    monkeypatch.setattr(zarr_export, "_CHUNK_LENGTH", 4)
    monkeypatch.setattr(zarr_columns, "_BATCH_SEQUENCES", 2)
    held = []
    append = zarr_export.GrowingArray.append

    def watched(self: Any, values: Any) -> None:
        append(self, values)
        held.append(sum(map(len, self._held)))

    monkeypatch.setattr(zarr_export.GrowingArray, "append", watched)
    put(tmp_path / "s", boundaries=(0, 14))
    export_zarr(tmp_path / "s", tmp_path / "e")
    # Files of the tokenizer come whole; they are shorter than a block.
    assert max(held) < 32


def nothing_left(folder: Path) -> bool:
    return sorted(os.listdir(folder)) == ["s", "s.journal.jsonl"]


def test_a_damaged_store_leaves_nothing_behind(tmp_path: Path) -> None:
    put(tmp_path / "s")
    path = tmp_path / "s" / "shards" / "00002.zarr.zip"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"00002\.zarr\.zip"):
        export_zarr(tmp_path / "s", tmp_path / "e")
    assert nothing_left(tmp_path)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "s")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr_export.GrowingArray, "close", full)
    with pytest.raises(StorageError, match="the disk is full"):
        export_zarr(tmp_path / "s", tmp_path / "e")
    assert nothing_left(tmp_path)


def test_of_two_exports_to_one_folder_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "s")
    finish = zarr_export._finish

    def late(*given: Any) -> None:
        finish(*given)
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "theirs").touch()

    monkeypatch.setattr(zarr_export, "_finish", late)
    with pytest.raises(MismatchError, match="was made by another process meanwhile"):
        export_zarr(tmp_path / "s", tmp_path / "e")
    assert sorted(os.listdir(tmp_path)) == ["e", "s", "s.journal.jsonl"]
    assert os.listdir(tmp_path / "e") == ["theirs"]


WRONG: dict[str, tuple[Callable[[Path], object], type[LogitStoreError], str]] = {
    "a folder that is there": (lambda p: (p / "e").mkdir(), MismatchError, "is there already"),
    "a file of that name": (lambda p: (p / "e").touch(), MismatchError, "is there already"),
    "an unfinished store": (
        lambda p: (p / "s" / "DONE").unlink(),
        IncompleteStoreError,
        "holds 12 of 12 rows",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_places_are_one_error(tmp_path: Path, what: str) -> None:
    spoil, error, message = WRONG[what]
    put(tmp_path / "s")
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        export_zarr(tmp_path / "s", tmp_path / "e")


@pytest.mark.parametrize("out", ["nope://x/y", "zip://a::s3://b/c", "s3://"])
def test_addresses_that_cannot_be_are_one_error(tmp_path: Path, out: str) -> None:
    put(tmp_path / "s")
    with pytest.raises(InputError):
        export_zarr(tmp_path / "s", out)


def test_into_memory(tmp_path: Path) -> None:
    put(tmp_path / "s")
    url = f"memory://{uuid.uuid4().hex}/e"
    export_zarr(tmp_path / "s", url)
    assert_same(open_store(tmp_path / "s"), xr.open_zarr(url).load())
    with pytest.raises(MismatchError, match="is there already"):
        export_zarr(tmp_path / "s", url)


def test_from_a_bucket_into_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    put(tmp_path / "s")
    url = bucket.upload(tmp_path / "s", "s")
    bucket.fail("PUT", "e/entropy/c/0", "503")
    bucket.fail("PUT", "e/zarr.json", "lost")
    export_zarr(url, f"{bucket.url}/e")
    assert_same(open_store(tmp_path / "s"), xr.open_zarr(f"{bucket.url}/e").load())
    puts = [path for method, path in bucket.requests if method == "PUT" and "/e/" in path]
    assert puts[-1].endswith("/e/zarr.json")  # without it nothing opens, and it is the last


@pytest.mark.usefixtures("fresh_clients")
def test_a_bucket_is_written_by_the_client_that_is_there_already(
    bucket: Bucket, tmp_path: Path
) -> None:
    put(tmp_path / "s")
    export_zarr(tmp_path / "s", f"{bucket.url}/e")
    assert len(S3FileSystem._cache) == 1  # one that zarr makes for itself is never closed


def test_a_bucket_that_refuses_is_left_as_it_was(bucket: Bucket, tmp_path: Path) -> None:
    put(tmp_path / "s")
    bucket.fail("PUT", "e/entropy/c/0", "403", times=99)
    with pytest.raises(StorageError, match="access was refused"):
        export_zarr(tmp_path / "s", f"{bucket.url}/e")
    assert bucket.tree("e") == {}
    bucket.put("e/token_ids/c/0", b"left by a process that was killed")
    with pytest.raises(MismatchError, match=r"holds token_ids but no zarr\.json"):
        export_zarr(tmp_path / "s", f"{bucket.url}/e")
    with pytest.raises(StorageError, match="there is no such bucket"):
        export_zarr(tmp_path / "s", "s3://no-such-bucket/e")


def test_from_the_command_line(tmp_path: Path) -> None:
    put(tmp_path / "s")
    words = ["export", str(tmp_path / "s"), "--to", "zarr", "--out"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "e")])
    assert done.stdout == f"{tmp_path / 'e'}: 21 zarr arrays, 68 records, 408 entries\n"
    done = CliRunner().invoke(app, [*words, str(tmp_path / "f"), "--json"])
    assert json.loads(done.stdout) == {
        "path": str(tmp_path / "f"),
        "arrays": 21,
        "sequences": 12,
        "records": 68,
        "entries": 408,
    }
    done = CliRunner().invoke(app, [*words[:3], "csv", "--out", str(tmp_path / "g")])
    assert isinstance(done.exception, InputError)
    assert "--to is csv, expected parquet or zarr" in str(done.exception)
