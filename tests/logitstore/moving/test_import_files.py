"""A dump is read as a capture reads its dataset: any kind of file, each value as it is written."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from logitstore.errors import InputError
from logitstore.moving.dumps.importing import import_dump
from logitstore.rows import token_rows
from logitstore.store import LogitStore
from logitstore.testing import stores
from tests.kit import dumps
from tests.kit.dumps import ENGLISH, Dumper, imported, settings

Row = dict[str, Any]


def lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(memoryview(sink.getvalue()))


#: How each kind of file is written.
KINDS: dict[str, Callable[[list[Row]], bytes]] = {
    "a.jsonl": lines,
    "a.ndjson": lambda rows: b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n\n"),
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "a.jsonl.zst": lambda rows: zstd(lines(rows)),
    "a.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "a.json.gz": lambda rows: gzip.compress(lines(rows)),
}


def same(one: LogitStore, other: LogitStore) -> bool:
    texts = [[store.text(i) for i in range(len(store))] for store in (one, other)]
    records = [[r.entry_logprobs.tobytes() for r in store] for store in (one, other)]
    return texts[0] == texts[1] and records[0] == records[1]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_holds_the_same_rows(name: str, teacher: Dumper, tmp_path: Path) -> None:
    rows = [teacher.raw(text) for text in ENGLISH]
    (tmp_path / name).write_bytes(KINDS[name](rows))
    store, _ = imported(tmp_path / name, teacher, shard_text_bytes=60)
    one, _ = imported(dumps.write_parquet(tmp_path / "all.parquet", rows), teacher)
    assert store.plan.shard_count > 2
    assert same(store, one)


def test_a_folder_of_files_is_one_dump_and_so_are_the_files_of_a_pattern(
    teacher: Dumper, tmp_path: Path
) -> None:
    rows = [teacher.prepared(text) for text in ENGLISH]
    (tmp_path / "d").mkdir()
    dumps.write_parquet(tmp_path / "d" / "0.parquet", rows[:5])
    dumps.write_parquet(tmp_path / "d" / "1.parquet", rows[5:])
    (tmp_path / "d" / "2.json").write_text("{}")  # beside the data
    store, _ = imported(tmp_path / "d", teacher, shard_text_bytes=60)
    one, _ = imported(dumps.write_parquet(tmp_path / "all.parquet", rows), teacher)
    assert store.plan.shard_count > 2
    assert same(store, one)
    for n, part in enumerate((rows[:5], rows[5:])):
        (tmp_path / f"{n}.jsonl.gz").write_bytes(gzip.compress(lines(part)))
    pattern = str(tmp_path / "?.jsonl.gz")
    several, _ = import_dump(pattern, tmp_path / "s", settings(teacher, shard_text_bytes=60))
    assert several is not None
    assert same(several, one)


def test_an_import_of_compressed_files_goes_on_to_the_same_bytes(
    teacher: Dumper, tmp_path: Path
) -> None:
    """There is no place in such a file to go on from: what was done is passed over."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines([teacher.raw(text) for text in ENGLISH])))
    store, _ = imported(path, teacher, shard_text_bytes=60)
    whole = stores.tree(store.path)  # type: ignore[arg-type]
    for name in ("DONE", "shards/00001.zarr.zip", "shards/00003.zarr.zip"):
        (tmp_path / "a.jsonl.store" / name).unlink()
    again, _ = imported(path, teacher, shard_text_bytes=60)
    assert stores.tree(again.path) == whole  # type: ignore[arg-type]


def test_a_line_may_be_longer_than_those_of_a_dataset(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has a list of many entries for every token."""
    monkeypatch.setattr("logitstore.rows.files._MOST_LINE_BYTES", 100)
    monkeypatch.setattr("logitstore.rows.files._BLOCK_BYTES", 64)
    rows = [teacher.raw(text) for text in ENGLISH]
    store, _ = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    assert len(store) == len(ENGLISH)
    monkeypatch.setattr("logitstore.moving.dumps.files._LONGEST_LINE_BYTES", 100)
    with pytest.raises(InputError, match=r"a.jsonl: line 1 is longer than 100 bytes"):
        import_dump(tmp_path / "a.jsonl", tmp_path / "s", settings(teacher))


# ---- each value as it is written ----


def test_dates_stay_texts_nulls_stay_nulls_and_late_keys_are_keys(
    teacher: Dumper, tmp_path: Path
) -> None:
    said: Row = {"due": "2024-07-26", "default": None}
    rows = [teacher.chat([{"role": "user", "content": "?"}], text) for text in ENGLISH]
    rows[3]["messages"][0]["about"] = said
    rows[3]["meta"] = {"late": ["2024-07-26T00:00:00Z"]}
    store, _ = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    kept = [json.loads(store.text(i).messages or "")["messages"][0] for i in (2, 3)]
    assert kept == [
        {"role": "user", "content": "?"},
        {"role": "user", "content": "?", "about": said},
    ]


def test_in_a_table_a_missing_value_is_an_absent_key(teacher: Dumper, tmp_path: Path) -> None:
    """Arrow gives each object the keys of all others: of messages, and of lists keyed by ids."""
    rows = [teacher.chat([{"role": "user", "content": "?"}], text) for text in ENGLISH[:2]]
    rows[1]["messages"][0]["about"] = {"due": "today"}
    store, _ = imported(dumps.write_parquet(tmp_path / "a.parquet", rows), teacher)
    kept = json.loads(store.text(0).messages or "")["messages"][0]
    assert kept == {"role": "user", "content": "?"}
    scored = [teacher.scored(text) for text in ENGLISH[:2]]
    table, _ = imported(dumps.write_parquet(tmp_path / "b.parquet", scored), teacher)
    plain, _ = imported(dumps.write_jsonl(tmp_path / "c.jsonl", scored), teacher)
    assert same(table, plain)


def test_a_null_in_a_column_is_no_column(teacher: Dumper, tmp_path: Path) -> None:
    """As where two layouts were written into one table."""
    rows = [teacher.raw(text) | {"target_token_ids": None} for text in ENGLISH]
    rows = [row | {"target_logprobs": None, "labels": None} for row in rows]
    _, found = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    assert found["layout"] == "raw"


TWICE = '{"input_ids": [5, 6], "logprobs": [null, [{"token_id": 6, "logprob": -1, "logprob": -2}]]}'
DEEP = '{"input_ids": [5, 6], "logprobs": [null, []], "x": ' + "[" * 101 + "]" * 101 + "}"
NAN = '{"messages": [{"role": "assistant", "content": "a", "x": NaN}], "logprobs": [[]]}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (TWICE, "line 1: has the key 'logprob' twice in one object. Repair or drop the row."),
        (DEEP, "line 1: is nested deeper than 100 levels. Repair or drop the row."),
        (NAN, "line 1: messages holds NaN or an infinite number, which JSON does not have."),
    ],
)
def test_what_two_readers_would_read_in_two_ways_is_refused(
    line: str, says: str, teacher: Dumper, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError) as raised:
        import_dump(tmp_path / "a.jsonl", tmp_path / "s", settings(teacher))
    assert says in str(raised.value)
    assert not (tmp_path / "s").exists()


# ---- documents ----


def joined(rows: list[Row], how: str) -> Row:
    """One row of all; list t of `prepared` rows describes token t + 1, so the last is nobody's."""
    whole = {name: [value for row in rows for value in row[name]] for name in rows[0]}
    lengths = [len(row["input_ids"]) for row in rows]
    if how == "position_ids":
        return whole | {how: [p for n in lengths for p in range(n)]}
    if how == "seq_lengths":
        return whole | {how: lengths}
    return whole | {"attention_mask": [d for d, n in enumerate(lengths, 1) for _ in range(n)]}


@pytest.mark.parametrize("how", ["position_ids", "seq_lengths", "attention_mask"])
@pytest.mark.parametrize("layout", ["raw", "prepared"])
def test_a_packed_row_is_cut_where_it_says_so(
    layout: str, how: str, teacher: Dumper, tmp_path: Path
) -> None:
    texts = [*ENGLISH[:3], "ü, " * 4]
    rows = [getattr(teacher, layout)(text) for text in texts]
    single, _ = imported(dumps.write_jsonl(tmp_path / "single.jsonl", rows), teacher)
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [joined(rows, how)])
    store, found = imported(path, teacher)
    assert found["rows"] == 1
    assert store.spec.rendering["obeys"] == ["documents"]
    assert "obeys" not in single.spec.rendering
    before = 0
    for i in range(len(texts)):
        line, alone = store.text(i), single.text(i)
        assert (line.row, line.part, line.supervised_start) == (0, i, before)
        assert line.supervised_bytes == alone.supervised_bytes
        assert store[i].token_ids.tolist() == single[i].token_ids.tolist()
        assert store[i].entry_logprobs.tobytes() == single[i].entry_logprobs.tobytes()
        starts = store[i].byte_starts - single[i].byte_starts
        np.testing.assert_array_equal(starts, np.full(len(single[i]), before))
        before += len(line.supervised_bytes)


def test_more_documents_than_a_row_may_have_are_refused(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_rows, "MOST_DOCUMENTS", 2)
    rows = [teacher.raw(text) for text in ENGLISH[:3]]
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [joined(rows, "position_ids")])
    with pytest.raises(InputError, match="line 1: is packed of 3 documents, expected at most 2"):
        import_dump(path, tmp_path / "s", settings(teacher))
