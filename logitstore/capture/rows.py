"""Rows of the user's dataset -> segments of text: what is context, what is trained on.

A dataset is a hub id, a folder (of data files, or from `save_to_disk`), a `.jsonl`, `.json`,
`.parquet` or `.txt` file (a row a line), or a `datasets.Dataset`. Its columns decide its kind:

    prompt_completion   `prompt` is context, `completion` is supervised
    text                `text`, or the column that the user names, is supervised

Rows keep their order and number: an empty or missing text is still a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.capture.sources import load_split
from logitstore.errors import InputError
from logitstore.progress import progress
from logitstore.records import Segment

if TYPE_CHECKING:
    from datasets import Dataset

_PROMPT_COMPLETION = ("prompt", "completion")
_CONVERSATIONS = ("messages", "conversations", "conversation")
_BATCH_ROWS = 10_000


def load_rows(
    dataset: str | Path | Dataset,
    *,
    split: str | None = None,
    config_name: str | None = None,
    text_column: str | None = None,
    revision: str | None = None,
) -> Rows:
    """Opens a dataset.

    Args:
        dataset: Where it is, or a `datasets.Dataset` itself.
        split: Which of its splits; slices such as `train[:1000]` too. Not needed if there is one.
        config_name: Which of its configurations, for a hub id or a folder.
        text_column: The column to train on, instead of `text`.
        revision: Branch, tag or commit, for a hub id.

    Raises:
        InputError: It is not there, cannot be read, has no rows, or its columns are not known.
    """
    found, name = load_split(dataset, split, config_name, revision)
    kind, columns = _choose_columns(found, name, text_column)
    if len(found) == 0:
        raise InputError(
            f"{name}: 0 rows, so nothing to capture. Give a dataset or --split with some."
        )
    return Rows(found.select_columns(list(columns)), name, kind, columns)


class Rows:
    """The text of a dataset, row by row.

    Attributes:
        name: What the user called it, for messages.
        kind: `text` or `prompt_completion`.
        columns: The columns that are read, in the order of the segments.
    """

    def __init__(self, dataset: Dataset, name: str, kind: str, columns: tuple[str, ...]) -> None:
        self.name, self.kind, self.columns = name, kind, columns
        self._dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._dataset)

    def segments(self, i: int) -> tuple[Segment, ...]:
        """The text of row `i`, in order; a missing text is an empty one.

        Raises:
            InputError: It is not UTF-8.
        """
        table = self._dataset[i : i + 1]
        if len(table) != 1:
            raise IndexError(f"row {i} of {len(self)}")
        try:
            texts = [table.column(column)[0].as_py() or "" for column in self.columns]
        except UnicodeDecodeError:
            raise self._not_utf8(i) from None
        supervised = (True,) if self.kind == "text" else (False, True)
        return tuple(Segment(text, flag) for text, flag in zip(texts, supervised, strict=True))

    def text_bytes(self) -> npt.NDArray[np.int64]:
        """(rows,) UTF-8 bytes of each row's text. Reads lengths only, not the text."""
        return np.concatenate(
            [sum(_lengths(table.column(c)) for c in self.columns) for _, table in self._tables()]
        )

    def digest(self) -> str:
        """SHA-256 of the kind, and of every used column's lengths and bytes.

        The same rows give the same digest from any file format, chunking or column name. Every
        text is checked on the way.

        Raises:
            InputError: A text is not UTF-8; names the first such row.
        """
        parts = [(hashlib.sha256(), hashlib.sha256()) for _ in self.columns]
        with progress(len(self), "read the dataset", "rows") as shown:
            for first, table in self._tables():
                for column, (lengths, content) in zip(self.columns, parts, strict=True):
                    texts = table.column(column)
                    self._check_utf8(first, texts)
                    lengths.update(_lengths(texts).astype("<i8").tobytes())
                    for chunk in texts.chunks:
                        content.update(_content(chunk))
                shown.update(len(table))
        hashes = [[part.hexdigest() for part in pair] for pair in parts]
        return hashlib.sha256(json.dumps([self.kind, len(self), hashes]).encode()).hexdigest()

    def _tables(self) -> Iterator[tuple[int, pa.Table]]:
        """The used columns as strings without nulls, some rows at a time, with the first row."""
        for first in range(0, len(self), _BATCH_ROWS):
            table = self._dataset[first : first + _BATCH_ROWS]
            columns = [
                pc.fill_null(table.column(c).cast(pa.large_binary()), b"") for c in self.columns
            ]
            yield first, pa.table(columns, names=list(self.columns))

    def _check_utf8(self, first: int, texts: pa.ChunkedArray) -> None:
        try:
            texts.cast(pa.large_string())  # Arrow checks the text here
        except pa.ArrowInvalid:
            for i, text in enumerate(texts):
                if not _is_utf8(text.as_py()):
                    raise self._not_utf8(first + i) from None
            raise

    def _not_utf8(self, row: int) -> InputError:
        return InputError(
            f"{self.name}: row {row:,} is not UTF-8 text. Write the dataset again from text "
            "that was decoded with its own encoding, or drop the row."
        )


def _choose_columns(
    dataset: Dataset, name: str, text_column: str | None
) -> tuple[str, tuple[str, ...]]:
    """The kind of the dataset, and the columns to read."""
    found = dataset.column_names
    columns: tuple[str, ...]
    if text_column is not None:
        kind, columns = "text", (text_column,)
    elif set(_PROMPT_COMPLETION) <= set(found):
        kind, columns = "prompt_completion", _PROMPT_COMPLETION
    else:
        kind, columns = "text", ("text",)
    if not set(columns) <= set(found):
        raise InputError(_no_columns(name, found, text_column))
    for column in columns:
        _check_type(dataset, name, column)
    return kind, columns


def _check_type(dataset: Dataset, name: str, column: str) -> None:
    dtype = dataset.features.arrow_schema.field(column).type
    if _is_text(dtype):
        return
    hint = "Name a column of strings with --text-column."
    if pa.types.is_nested(dtype):
        hint = (
            "Conversations are not read in this version: write them as strings, `prompt` and "
            "`completion`, with the chat template of the teacher."
        )
    raise InputError(f"{name}: column {column!r} holds {dtype}, expected text. {hint}")


def _is_text(dtype: pa.DataType) -> bool:
    """Strings of any width; or a column that is missing in every row."""
    tests: tuple[Callable[[Any], bool], ...] = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    return any(test(dtype) for test in tests)


def _no_columns(name: str, found: list[str], text_column: str | None) -> str:
    listed = ", ".join(found) or "none"
    if text_column is not None:
        return f"{name}: no column {text_column!r}; found {listed}. Name one of these."
    if any(column in found for column in _CONVERSATIONS):
        return (
            f"{name}: found columns {listed}. Conversations are not read in this version: write "
            "them as strings, `prompt` and `completion`, with the chat template of the teacher."
        )
    return (
        f"{name}: no known columns; expected `text`, or `prompt` and `completion`, found {listed}. "
        "Name the column to train on with --text-column."
    )


def _lengths(texts: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Bytes of each text."""
    return np.asarray(pc.binary_length(texts), np.int64)


def _content(texts: pa.Array) -> memoryview:
    """The bytes of all texts of an array, one after the other, not copied."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if data is None or len(ends) == 0:
        return memoryview(b"")
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
