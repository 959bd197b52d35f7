"""Rows of a dataset: each counts, its text unchanged, whatever it came in; or a clear error."""

import json
import struct
from hashlib import sha256
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.rows.dataset import Rows, load_rows
from logitstore.testing import tiny

TEXTS = [*tiny.corpus()[-12:], "", None, "last"]
LINES = ["one", "", "zwei — ü", "三 🙂"]


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def invalid_strings() -> pa.Array:
    """Two strings as Arrow would never make them: the second is the byte 0xE9 alone."""
    offsets = np.array([0, 1, 2], np.int32).tobytes()
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"a\xe9")]
    return pa.Array.from_buffers(pa.string(), 2, buffers)


def texts_of(rows: Rows) -> list[str]:
    return [rows.segments(i)[0].text for i in range(len(rows))]


# What is read


def test_every_source_gives_the_same_rows_and_digest(tmp_path):
    table = datasets.Dataset.from_dict({"text": TEXTS})
    table.save_to_disk(tmp_path / "disk")
    table.to_parquet(tmp_path / "data.parquet")
    (tmp_path / "folder").mkdir()
    table.to_parquet(tmp_path / "folder" / "train.parquet")
    sources = [
        table,
        datasets.DatasetDict({"train": table}),
        tmp_path / "disk",
        str(tmp_path / "data.parquet"),
        tmp_path / "folder",
        write_jsonl(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS]),
    ]
    found = [load_rows(source) for source in sources]
    assert len({rows.digest() for rows in found}) == 1
    for rows in found:
        assert rows.kind == "text"
        assert texts_of(rows) == [text or "" for text in TEXTS]


def test_text_file_has_a_row_a_line(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    assert texts_of(load_rows(path)) == LINES


def test_prompt_is_context_and_completion_is_supervised():
    table = datasets.Dataset.from_dict(
        {"completion": ["b", None], "id": [1, 2], "prompt": ["a", "c"], "text": ["x", "y"]}
    )
    rows = load_rows(table)
    assert rows.kind == "prompt_completion"
    assert rows.columns == ("prompt", "completion")
    assert rows.segments(0) == (Segment("a", False), Segment("b", True))
    assert rows.segments(1) == (Segment("c", False), Segment("", True))


def test_named_column_is_the_text():
    table = datasets.Dataset.from_dict({"body": ["a"], "prompt": ["p"], "completion": ["c"]})
    rows = load_rows(table, text_column="body")
    assert rows.kind == "text"
    assert rows.segments(0) == (Segment("a", True),)


@pytest.mark.parametrize("dtype", [pa.string(), pa.large_string(), pa.string_view()])
def test_width_of_arrows_strings_does_not_matter(dtype, tmp_path):
    pq.write_table(pa.table({"text": pa.array(["ä", None, "b"], dtype)}), tmp_path / "a.parquet")
    rows = load_rows(tmp_path / "a.parquet")
    assert texts_of(rows) == ["ä", "", "b"]
    assert rows.text_bytes().tolist() == [2, 0, 1]
    assert rows.digest() == load_rows(datasets.Dataset.from_dict({"text": ["ä", "", "b"]})).digest()


def test_split_is_chosen_by_name_or_slice(tmp_path):
    parts = {"train": ["a", "b", "c"], "test": ["d"]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
    ).save_to_disk(tmp_path / "disk")
    assert texts_of(load_rows(tmp_path / "disk", split="test")) == ["d"]
    assert texts_of(load_rows(tmp_path / "disk", split="train[1:]")) == ["b", "c"]
    assert texts_of(load_rows(tmp_path / "disk", split="test+train[:1]")) == ["d", "a"]


def test_a_row_beyond_the_last_is_an_index_error():
    with pytest.raises(IndexError):
        load_rows(datasets.Dataset.from_dict({"text": ["a"]})).segments(1)


# What a dataset is


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.none(), st.text(max_size=5)), min_size=1, max_size=12), st.data())
def test_bytes_and_digest_do_not_depend_on_chunks_or_order_of_storage(texts, data):
    texts = [None if t is None else t.encode("utf-8", "ignore").decode() for t in texts]
    whole = datasets.Dataset(pa.table({"text": pa.array(texts, pa.string())}))
    cut = data.draw(st.integers(0, len(texts)))
    chunked = pa.chunked_array(
        [pa.array(texts[:cut], pa.string()), pa.array(texts[cut:], pa.string())]
    )
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = datasets.Dataset(
        pa.table({"text": pa.array([texts[i] for i in order], pa.string())})
    )
    back = shuffled.select(np.argsort(order))
    digests = set()
    for table in (whole, datasets.Dataset(pa.table({"text": chunked})), back):
        rows = load_rows(table)
        digests.add(rows.digest())
        assert rows.text_bytes().tolist() == [len((t or "").encode()) for t in texts]
        assert texts_of(rows) == [t or "" for t in texts]
    assert len(digests) == 1


def test_digest_tells_texts_borders_order_and_kind_apart():
    def digest(**columns: list[str]) -> str:
        return load_rows(datasets.Dataset.from_dict(columns)).digest()

    found = [
        digest(text=["ab", "c"]),
        digest(text=["a", "bc"]),
        digest(text=["c", "ab"]),
        digest(text=["ab", "c", ""]),
        digest(prompt=["ab", "c"], completion=["", ""]),
        digest(prompt=["", ""], completion=["ab", "c"]),
    ]
    assert len(set(found)) == len(found)


def test_digest_ignores_columns_that_are_not_read_and_what_the_text_is_called():
    a = datasets.Dataset.from_dict({"text": ["x"], "id": [1]})
    b = datasets.Dataset.from_dict({"body": ["x"], "id": [2]})
    assert load_rows(a).digest() == load_rows(b, text_column="body").digest()


def test_digest_is_that_of_lengths_and_bytes_column_by_column():
    """Stores keep it: a change would make every started capture another dataset's."""
    rows = load_rows(datasets.Dataset.from_dict({"prompt": ["a", "é"], "completion": ["", "🙂"]}))
    prompts = [sha256(struct.pack("<2q", 1, 2)), sha256("aé".encode())]
    completions = [sha256(struct.pack("<2q", 0, 4)), sha256("🙂".encode())]
    parts = [[part.hexdigest() for part in pair] for pair in (prompts, completions)]
    assert rows.digest() == sha256(json.dumps(["prompt_completion", 2, parts]).encode()).hexdigest()
    assert rows.digest() == "5fe7d769bd854af3afbafb0643038900ceb5a876c7109e1c28b91a7583faee5c"


def test_long_datasets_are_read_in_parts(monkeypatch):
    table = datasets.Dataset.from_dict({"text": [str(i) for i in range(25)]})
    whole = load_rows(table).digest()
    monkeypatch.setattr("logitstore.rows.survey._BATCH_ROWS", 7)
    assert load_rows(table).digest() == whole
    assert load_rows(table).text_bytes().tolist() == [1] * 10 + [2] * 15


# What cannot be read


def refused(*parts: str) -> pytest.RaisesExc[InputError]:
    """An InputError whose message says all of `parts`."""
    return pytest.RaisesExc(InputError, check=lambda e: all(part in str(e) for part in parts))


def test_unknown_columns_are_named_with_the_known_ones():
    with refused("found id, body", "`text`", "`prompt` and `completion`", "--text-column"):
        load_rows(datasets.Dataset.from_dict({"id": [1], "body": ["a"]}))
    with refused("no column 'txt'", "found id, body"):
        load_rows(datasets.Dataset.from_dict({"id": [1], "body": ["a"]}), text_column="txt")


def test_column_of_numbers_is_not_text():
    with refused("column 'text' holds int64", "expected text", "--text-column"):
        load_rows(datasets.Dataset.from_dict({"text": [1, 2]}))


def test_splits_are_named_where_one_must_be_chosen():
    table = datasets.Dataset.from_dict({"text": ["a"]})
    both = datasets.DatasetDict({"train": table, "test": table})
    with refused("splits train, test", "--split"):
        load_rows(both)
    with refused("no split 'dev'", "found train, test"):
        load_rows(both, split="dev")


def test_missing_files_are_not_looked_for_on_a_hub(tmp_path):
    for missing in (tmp_path / "no", "./no/folder", "data.jsonl"):
        with refused(str(missing), "no such file or folder"):
            load_rows(missing)
    with refused("some/dataset", "neither a file or folder here", "--split"):
        load_rows("some/dataset")


def test_nothing_to_read_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    with refused("0 rows"):
        load_rows(tmp_path / "empty.jsonl")
    with refused("0 rows"):
        load_rows(
            datasets.Dataset.from_dict({"text": []}).cast_column("text", datasets.Value("string"))
        )
    with refused("folder"):
        load_rows(tmp_path / "folder")
    with refused("unknown kind of file", ".parquet"):
        load_rows(Path(__file__))


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
@pytest.mark.parametrize("block_bytes", [1, 5, 1024])
def test_line_that_is_not_utf8_is_named(ending, block_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("logitstore.rows.files._BLOCK_BYTES", block_bytes)
    path = tmp_path / f"data.{ending}"
    path.write_bytes('{"text": "é 🙂"}\n{"text": ""}\n'.encode() + b'{"text": "\xe9"}\n')
    with refused(path.name, "line 3 is not UTF-8", "0xE9", "iconv"):
        load_rows(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / path.name)
    with refused(path.name, "line 3 is not UTF-8"):
        load_rows(folder)


def test_text_cut_inside_a_character_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes("ab\n🙂".encode()[:-1])
    with refused("line 2 is not UTF-8"):
        load_rows(tmp_path / "a.txt")


def test_row_of_a_parquet_file_that_is_not_utf8_is_named(tmp_path):
    pq.write_table(pa.table({"text": invalid_strings()}), tmp_path / "a.parquet")
    rows = load_rows(tmp_path / "a.parquet")
    assert rows.segments(0) == (Segment("a", True),)
    for read in (rows.digest, lambda: rows.segments(1)):
        with refused("a.parquet", "row 1 is not UTF-8"):
            read()


def test_half_surrogates_and_broken_lines_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude42"}\n{"text": "\\ud800"}\n')
    with refused("line 2", "surrogate"):
        load_rows(path)
    path.write_text('{"text": "a"}\n{"text": \n')
    with refused("line 2 is not JSON"):
        load_rows(path)


def test_a_setting_that_would_do_nothing_is_refused(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a"]})
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with refused("--revision main"):
        load_rows(path, revision="main")
    with refused("--config-name en"):
        load_rows(table, config_name="en")
    with refused("transform", "dataset.map"):
        load_rows(table.with_transform(lambda batch: batch))


def test_streams_are_refused():
    with refused("IterableDataset", "streaming"):
        load_rows(datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset())  # type: ignore[arg-type]
