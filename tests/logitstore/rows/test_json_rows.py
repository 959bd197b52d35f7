"""JSON is read as it is written: no type is guessed, no key added, and what is broken is named."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitstore.errors import InputError
from logitstore.rows import columns, files
from logitstore.rows.columns import read_columns
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.files import File
from logitstore.rows.json_rows import rows_of
from tests.kit.rows import rows_file
from tests.kit.templates import turns

DATES = ["2024-01-01", "2024-01-01T10:00:00", "2024-01-01T10:00:00Z"]


def texts_of(rows: Rows) -> list[str]:
    return [rows.segments(i)[0].text for i in range(len(rows))]


def test_a_date_is_a_text_wherever_it_stands(tmp_path: Path) -> None:
    """A reader that guesses types makes a timestamp of it, which is no text and no JSON."""
    assert texts_of(load_rows(rows_file(tmp_path / "a.jsonl", *({"text": d} for d in DATES)))) == (
        DATES
    )
    call = {"function": {"name": "on", "arguments": {"day": DATES[0]}}}
    talk = [*turns(DATES[0], DATES[1]), {"role": "assistant", "tool_calls": [call]}]
    row = {
        "messages": talk,
        "tools": [{"since": DATES[0]}],
        "chat_template_kwargs": {"d": DATES[2]},
    }
    rows = load_rows(rows_file(tmp_path / "b.jsonl", row))
    assert rows.digest()
    assert rows.dialogue(0) == (talk, 0, row["tools"], row["chat_template_kwargs"])
    prompts = [{"prompt": "When?", "completion": d} for d in DATES]
    rows = load_rows(rows_file(tmp_path / "c.jsonl", *prompts))
    assert rows.kind == "prompt_completion"
    assert [rows.segments(i)[1].text for i in range(3)] == DATES


def test_a_null_in_a_tool_or_its_arguments_is_one(tmp_path: Path) -> None:
    """In a schema `"default": null` is a default. In a message itself it is a missing key."""
    tools = [{"type": "function", "function": {"parameters": {"unit": {"default": None}}}}]
    call = {"id": None, "function": {"name": "f", "arguments": {"unit": None}}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = {"messages": [*turns("a"), message], "tools": tools, "chat_template_kwargs": {"x": None}}
    rows = load_rows(rows_file(tmp_path / "a.jsonl", row, {"messages": turns("a", "b")}))
    found = rows.dialogue(0)
    assert found.messages[1] == {"role": "assistant", "tool_calls": [call]}
    assert (found.tools, found.kwargs) == (tools, {"x": None})
    other = {**row, "tools": [{"type": "function", "function": {"parameters": {"unit": {}}}}]}
    assert load_rows(rows_file(tmp_path / "b.jsonl", other)).digest() != rows.digest()
    # JSON in a string is exact, also in a table of Arrow's.
    packed = datasets.Dataset.from_list([{"messages": turns("a"), "tools": json.dumps(tools)}])
    assert load_rows(packed).dialogue(0).tools == tools


def test_in_a_table_of_arrows_a_null_is_a_key_of_another_row() -> None:
    """It gives every object the keys of all others, so the two cannot be told apart there."""
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": "b"}], "tools": [{"p": {"x": 1}}]},
        {"messages": turns("a", "b"), "tools": [{"p": {"y": 1}}]},
    ]
    found = load_rows(datasets.Dataset.from_list(rows))
    assert [found.dialogue(i).tools for i in (0, 1)] == [[{"p": {"x": 1}}], [{"p": {"y": 1}}]]
    assert found.dialogue(1).messages == turns("a", "b")


@pytest.mark.parametrize("rows_a_batch", [1, 3, 1000])
def test_a_late_key_is_no_error_where_nobody_asks_for_it(
    rows_a_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` fixes its columns by the first ten megabytes."""
    monkeypatch.setattr(columns, "_BATCH_ROWS", rows_a_batch)
    rows = [{"text": "x" * 60_000} for _ in range(180)] + [{"text": "y", "meta": {"a": 1}}]
    assert texts_of(load_rows(rows_file(tmp_path / "a.jsonl", *rows)))[-1] == "y"
    talks: list[dict[str, Any]] = [{"messages": turns("a", "b")} for _ in range(5)]
    found = load_rows(rows_file(tmp_path / "b.jsonl", *talks, {**talks[0], "tools": [{"a": 1}]}))
    assert [found.dialogue(i).tools for i in (0, 4, 5)] == [None, None, [{"a": 1}]]


@pytest.mark.parametrize("rows_a_batch", [1, 2, 1000])
def test_a_key_that_every_row_needs_is_named_with_file_and_line(
    rows_a_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A null is a row without text; a row without the key is another kind of row, and was lost."""
    monkeypatch.setattr(columns, "_BATCH_ROWS", rows_a_batch)
    path = rows_file(tmp_path / "a.jsonl", {"text": None}, {"text": "a"}, {"prompt": "b"})
    with pytest.raises(InputError, match=r"a\.jsonl: line 3 has no key 'text'"):
        load_rows(path)
    path = rows_file(
        tmp_path / "b.jsonl", *[{"prompt": "a"}] * 4, {"prompt": "b", "completion": ""}
    )
    with pytest.raises(InputError, match=r"b\.jsonl: line 1 has no key 'completion'"):
        load_rows(path)
    assert len(load_rows(path, prompts=True)) == 5


def test_types_that_change_matter_in_columns_that_are_read(tmp_path: Path) -> None:
    mixed = [{"text": "a", "meta": 1, "labels": "x"}, {"text": "b", "meta": [1], "labels": 2}]
    assert texts_of(load_rows(rows_file(tmp_path / "a.jsonl", *mixed))) == ["a", "b"]
    for row, why in (
        ({"prompt": turns("a"), "completion": "b"}, r"line 2: 'prompt' is a list, expected text"),
        ({"prompt": 3, "completion": "b"}, r"line 2: 'prompt' is a number, expected text"),
        ({"prompt": "a", "completion": {}}, r"line 2: 'completion' is an object, expected text"),
    ):
        path = rows_file(tmp_path / "b.jsonl", {"prompt": "a", "completion": "b"}, row)
        with pytest.raises(InputError, match=rf"b\.jsonl: {why}"):
            load_rows(path)


HOSTILE = {
    "nested deep": (b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested"),
    "nested deeper than needed": (
        b'{"messages": [{"role": "user", "content": "a", "x": ' + b"[" * 150 + b"]" * 150 + b"}]}",
        "'messages' is nested deeper than 100 levels",
    ),
    "a huge number": (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", "more than 4,300 digits"),
    "a huge id": (b'{"input_ids": [1, ' + b"9" * 30 + b"]}", "'input_ids' holds something other"),
    "an id with a point": (b'{"input_ids": [1, 2.0]}', "'input_ids' holds something other"),
    "NaN": (b'{"messages": [{"role": "user", "content": "a", "x": NaN}]}', "holds NaN"),
    "infinity": (b'{"messages": [{"role": "user", "content": "a", "x": 1e999}]}', "or an infinite"),
    "not UTF-8": (b'{"text": "\xe9"}', "is not UTF-8 (byte 0xE9)"),
    "half a surrogate pair": (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    "half of one in a message": (
        b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
        "'messages' holds half of a surrogate pair",
    ),
    "a key twice": (b'{"text": "a", "text": "b"}', "has the key 'text' twice"),
    "a key twice inside": (
        b'{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}',
        "'messages' has the key 'role' twice",
    ),
    "no object": (b'["text"]', "holds a list, not an object"),
    "no JSON": (b'{"text": }', "is not JSON (Expecting value at column 10)"),
    "cut off": (b'{"text": "a', "is not JSON"),
    "two objects": (b'{"text": "a"} {"text": "b"}', "is not JSON (Extra data"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_rows_are_one_error_that_names_the_line(hostile: str, tmp_path: Path) -> None:
    line, why = HOSTILE[hostile]
    path = tmp_path / "a.jsonl"
    first = line if b"text" not in line else b'{"text": "a"}'
    path.write_bytes(b"\n" + line + b"\n" if first is line else first + b"\n" + line + b"\n")
    with pytest.raises(InputError) as error:
        load_rows(path)
    assert f"{path}: line 2" in str(error.value)
    assert why in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_hostile_where_nobody_looks_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "x": {"b": 1, "b": NaN, "c": "\\ud800", "d": 1e999}}\n')
    assert texts_of(load_rows(path)) == ["a"]


def test_json_in_a_string_is_as_strict(tmp_path: Path) -> None:
    for text, why in (
        ("[" * 5000 + "]" * 5000, "is nested deeper"),
        ('[{"a": NaN}]', "holds NaN"),
        ('[{"a": 1, "a": 2}]', "has the key 'a' twice"),
    ):
        table = datasets.Dataset.from_list([{"messages": turns("a"), "tools": text}])
        with pytest.raises(InputError, match=f"row 0: tools: {why}"):
            load_rows(table).digest()


def test_a_value_that_json_does_not_have_is_named_by_its_row(tmp_path: Path) -> None:
    """Parquet has dates; a store keeps conversations as JSON."""
    import datetime

    import pyarrow as pa

    talk = [{"role": "user", "content": "a", "at": datetime.datetime(2024, 1, 1)}]
    pq.write_table(pa.table({"messages": [talk]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: row 0: holds what JSON does not have"):
        load_rows(tmp_path / "a.parquet").digest()


# `.json`


@pytest.mark.parametrize("block_bytes", [1, 7, 1024])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("is_list", [True, False])
def test_a_json_file_is_a_list_or_objects_in_a_row(
    is_list: bool, indent: int | None, block_bytes: int, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", block_bytes)
    rows = [{"text": 'é\n"]},{🙂'}, {"text": ""}, {"text": "[1, {2"}]
    written = [json.dumps(row, indent=indent, ensure_ascii=False) for row in rows]
    path = tmp_path / "a.json"
    path.write_text("[" + ",\n".join(written) + " ]\n" if is_list else "\n".join(written))
    assert texts_of(load_rows(path)) == [row["text"] for row in rows]


def test_a_json_list_of_texts_is_a_row_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["a", "b"]')
    assert texts_of(load_rows(tmp_path / "a.json")) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[{"text": "a"},\n{"text": "b"', "line 2 is not JSON"),
        (
            '[{"text": "a"}\n{"text": "b"}]',
            "line 2 is not JSON (Expecting ',' delimiter at column 1",
        ),
        ('[{"text": "a"}]\n\n[]', "line 3 is not JSON (Extra data at column 1"),
        ('[{"text": "a"},\n 5]', "line 2 holds a number, not an object"),
        ('[{"text": "a"},]', "line 1 is not JSON"),
        ('{"text": "a"}\n"b"', "line 2 holds text, not an object"),
        ("[", "line 1 is not JSON"),
    ],
)
def test_a_broken_json_file_names_the_line(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError) as error:
        load_rows(tmp_path / "a.json")
    assert f"a.json: {why}" in str(error.value)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_line_that_does_not_fit_in_memory_is_refused(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MOST_LINE_BYTES", 4096)
    monkeypatch.setattr(files, "_BLOCK_BYTES", 512)
    path = tmp_path / f"a.{ending}"
    path.write_text('{"text": "a"}\n{"text": "' + "b" * 100_000 + '"}\n')
    with pytest.raises(InputError, match=r"line 2 is longer than 4,096 bytes"):
        load_rows(path)


LEAF = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=4)
JSON = st.recursive(
    LEAF | st.floats(allow_nan=False, allow_infinity=False),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.fixed_dictionaries({"tools": st.lists(JSON, max_size=2)}), min_size=1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, data=st.data())
def test_any_json_comes_back_as_it_was(
    rows: list[dict[str, Any]], data: Any, tmp_path: Path
) -> None:
    for row in rows:
        row["messages"] = turns("a")
    indent = data.draw(st.sampled_from([None, 2]))
    written = [
        json.dumps(row, ensure_ascii=data.draw(st.booleans()), indent=indent) for row in rows
    ]
    path = tmp_path / ("a.jsonl" if indent is None else "a.json")
    try:
        path.write_text("\n".join(written), encoding="utf-8")
    except UnicodeEncodeError:  # half a surrogate pair
        return
    assert [dict(row.values) for row in rows_of(File.at(path))] == rows
    found = load_rows(path)
    assert [found.dialogue(i).tools or [] for i in range(len(rows))] == [r["tools"] for r in rows]


# Kept columns


def test_columns_are_kept_until_the_file_changes(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", {"text": "a"})
    wanted: dict[str, str | None] = {"text": "text"}
    first = read_columns([File.at(path)], wanted, tmp_path / "cache")
    again = read_columns([File.at(path)], wanted, tmp_path / "cache")
    assert again.key == first.key
    rows_file(path, {"text": "b"})
    changed = read_columns([File.at(path)], wanted, tmp_path / "cache")
    assert changed.table.column("text").to_pylist() == ["b"]
    kept = [p.name for p in (tmp_path / "cache").iterdir()]
    assert sorted(kept) == sorted({first.key[:32], changed.key[:32]})  # and nothing half-written


def test_a_file_that_cannot_be_read_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", {"text": "a"})
    path.write_text(path.read_text() + "{")
    with pytest.raises(InputError):
        read_columns([File.at(path)], {"text": "text"}, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
