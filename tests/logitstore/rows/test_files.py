"""Files as they come: packed, several, by pattern, in folders; each row counts once, in order."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitstore.errors import InputError, StorageError
from logitstore.rows import files
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.files import File, blocks_of, lines_of
from tests.kit.rows import texts_file

LINES = ["one", "", "zwei — ü", "三 🙂", "last"]


def texts_of(rows: Rows) -> list[str]:
    return [rows.segments(i)[0].text for i in range(len(rows))]


def packed(path: Path, data: bytes) -> Path:
    """Write bytes as the ending of the path says."""
    if path.suffix == ".gz":
        data = gzip.compress(data[:7]) + gzip.compress(
            data[7:]
        )  # of two members, as `cat` makes it
    elif path.suffix == ".zst":
        codec = pa.Codec("zstd")
        data = b"".join(codec.compress(part, asbytes=True) for part in (data[:7], data[7:]))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "txt"])
def test_a_packed_file_is_the_file(ending: str, packing: str, tmp_path: Path) -> None:
    written = {
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in LINES),
        "json": json.dumps([{"text": text} for text in LINES]),
        "txt": "\r\n".join(LINES),
    }
    written["ndjson"] = written["jsonl"]
    rows = load_rows(packed(tmp_path / f"a.{ending}{packing}", written[ending].encode()))
    assert texts_of(rows) == LINES
    plain = load_rows(datasets.Dataset.from_dict({"text": LINES}))
    assert rows.digest() == plain.digest()


@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize("how", ["cut off", "not packed"])
def test_a_packed_file_that_is_broken_is_named(how: str, packing: str, tmp_path: Path) -> None:
    path = packed(tmp_path / f"a.jsonl.{packing}", b'{"text": "a"}\n' * 10_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 9] if how == "cut off" else b'{"text": "a"}\n')
    with pytest.raises(
        InputError, match=rf"a\.jsonl\.{packing}: cannot be decompressed as {packing}"
    ):
        load_rows(path)


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_packed_file_is_read_a_block_at_a_time(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bomb of nearly a thousand times its size costs a block of memory; its line is refused."""
    monkeypatch.setattr(files, "_MOST_LINE_BYTES", 8 * 1024 * 1024)
    path = tmp_path / f"a.jsonl.{packing}"
    codec = {"gz": "gzip", "zst": "zstd"}[packing]
    with pa.output_stream(str(path), compression=codec) as out:
        for _ in range(10):
            out.write(b" " * 1024 * 1024)
    assert path.stat().st_size < 12_500
    assert max(map(len, blocks_of(File.at(path)))) <= files._BLOCK_BYTES
    with pytest.raises(InputError, match="line 1 is longer than"):
        load_rows(path)


def test_several_files_are_their_rows_in_order(tmp_path: Path) -> None:
    for name, texts in (("b", LINES[2:]), ("a", LINES[:2])):
        texts_file(tmp_path / f"{name}.jsonl", texts)
    whole = load_rows(texts_file(tmp_path / "whole.json", LINES))
    pattern = str(tmp_path / "[ab].jsonl")
    for named in (pattern, [tmp_path / "a.jsonl", str(tmp_path / "b.jsonl")], [pattern]):
        rows = load_rows(named)
        assert texts_of(rows) == LINES
        assert rows.digest() == whole.digest()
        assert rows.where(3) == f"{tmp_path / 'b.jsonl'}: row 1"
    assert (
        texts_of(load_rows([tmp_path / "b.jsonl", tmp_path / "a.jsonl"])) == LINES[2:] + LINES[:2]
    )
    assert texts_of(load_rows(pattern, split="train[1:3]")) == LINES[1:3]
    assert "row 1" in load_rows(pattern, split="train[1:]").where(1)


def test_several_parquet_files_too(tmp_path: Path) -> None:
    for name, texts in (("a", LINES[:2]), ("b", LINES[2:])):
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet")
    assert texts_of(load_rows(str(tmp_path / "*.parquet"))) == LINES
    with pytest.raises(InputError, match="files of Parquet and of text at once"):
        load_rows([tmp_path / "a.parquet", texts_file(tmp_path / "c.jsonl", LINES)])


def test_what_cannot_be_a_list_of_files_is_named(tmp_path: Path) -> None:
    a = texts_file(tmp_path / "a.jsonl", LINES)
    for named, why in (
        ([a, tmp_path / "b.jsonl"], r"b\.jsonl: no such file"),
        ([a, tmp_path], "a folder among files"),
        ([a, a], "is named twice"),
        ([a, str(tmp_path / "*.jsonl")], "is named twice"),
        (str(tmp_path / "*.txt"), "no file fits this pattern"),
        ([a, tmp_path / "a.csv"], r"a\.csv: no such file"),
        ([], "an empty list of files"),
    ):
        with pytest.raises(InputError, match=why):
            load_rows(named)
    (tmp_path / "a.parquet.gz").touch()
    with pytest.raises(InputError, match=r"unknown kind of file.*also with \.gz or \.zst"):
        load_rows(tmp_path / "a.parquet.gz")


def test_a_name_with_the_signs_of_a_pattern_is_a_name(tmp_path: Path) -> None:
    texts_file(tmp_path / "a[1].jsonl", ["it"])
    texts_file(tmp_path / "a1.jsonl", ["not"])
    assert texts_of(load_rows(tmp_path / "a[1].jsonl")) == ["it"]


def test_files_of_a_folder_are_read_as_they_are_alone(tmp_path: Path) -> None:
    """Its splits are those that `datasets` finds."""
    (tmp_path / "data").mkdir()
    texts_file(tmp_path / "data" / "train.jsonl", ["2024-01-01"])
    packed(tmp_path / "data" / "test-00000.jsonl.gz", b'{"text": "b"}\n')
    packed(tmp_path / "data" / "test-00001.jsonl.gz", b'{"text": "c"}\n')
    with pytest.raises(InputError, match=r"has the splits train, test\. Choose one"):
        load_rows(tmp_path / "data")
    assert texts_of(load_rows(tmp_path / "data", split="train")) == ["2024-01-01"]
    rows = load_rows(tmp_path / "data", split="test")
    assert texts_of(rows) == ["b", "c"]
    assert "test-00001.jsonl.gz: row 0" in rows.where(1)
    assert texts_of(load_rows(tmp_path / "data", split="test[1:]+train")) == ["c", "2024-01-01"]
    with pytest.raises(InputError, match=r"no split 'dev'"):
        load_rows(tmp_path / "data", split="dev")


def test_files_of_a_hub_are_read_as_those_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` finds and downloads them; what it would make of them is not asked."""
    path = texts_file(tmp_path / "a.jsonl", ["2024-01-01", None])
    url = "hf://datasets/some/dataset@main/a.jsonl"
    builder = datasets.load_dataset_builder("json", data_files={"train": str(path)})
    builder.config.data_files = {
        "train": [url],
        "test": ["hf://datasets/some/dataset@main/no.jsonl"],
    }
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: builder)
    asked: list[Any] = []

    def downloaded(_: Any, name: str) -> str:
        asked.append(name)
        return str(path)

    monkeypatch.setattr(datasets.DownloadManager, "download", downloaded)
    assert texts_of(load_rows("some/dataset", split="train")) == ["2024-01-01", ""]
    assert asked == [url]  # and nothing of the other split


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = texts_file(tmp_path / "a.jsonl", ["a"])
    (tmp_path / "cache").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(
        StorageError, match=r"cache/logitstore: cannot be written.*HF_DATASETS_CACHE"
    ):
        load_rows(path)


def test_lines_are_numbered_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo\rthree".encode())
    assert list(lines_of(File.at(tmp_path / "a.txt"))) == [
        (1, "one\r"),
        (2, "\r"),
        (3, "two\rthree"),
    ]
    assert texts_of(load_rows(tmp_path / "a.txt")) == ["one", "", "two", "three"]
