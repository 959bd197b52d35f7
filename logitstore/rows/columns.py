"""Read files of rows into memory-mapped columns, which are kept beside the cache of `datasets`.

Only columns that some kind of row has are written, each to an Arrow file of its own; a second
process, or a resumed capture, finds them there.

    <cache>/logitstore/<key>/columns.json     what was found
                             0.arrow …        a column each
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from logitstore.console.progress import progress
from logitstore.errors import StorageError, in_a_line
from logitstore.rows.column_writer import Column, ColumnWriter, Place
from logitstore.rows.files import TEXT, File, lines_of
from logitstore.rows.json_rows import Row, rows_of
from logitstore.storage.files import file_sign
from logitstore.text.strict_json import Twice

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 16 * 1024 * 1024
#: Keys that are remembered for the message which lists what was found.
_MOST_KEYS = 200
#: Part of the key, so that another version does not find what this one has written.
_VERSION = 1
_FACTS = "columns.json"


@dataclass(frozen=True)
class FileTable:
    """The rows of files, as columns.

    Attributes:
        table: The columns that can be read; one of nulls if there is none.
        columns: All columns that were looked for and are there, by name.
        keys: Every key of the rows, as far as there are not too many.
        firsts: The number of the first row of each file, and the file.
        key: Identifies the files as they were, and what was looked for.
    """

    table: pa.Table
    columns: Mapping[str, Column]
    keys: tuple[str, ...]
    firsts: tuple[tuple[int, str], ...]
    key: str


def read_columns(
    files: Sequence[File], wanted: Mapping[str, str | None], folder: Path
) -> FileTable:
    """Read files of JSON rows or of lines of text, or map what was read of them before.

    Args:
        files: The files.
        wanted: The columns to look for, and the shape that each must have; None: text or JSON.
        folder: The cache.

    Raises:
        InputError: A file is not what its ending says; names the line.
        OSError: A file cannot be read.
        StorageError: The cache cannot be written.
    """
    key = _key(files, wanted)
    place = folder / key[:32]
    if not (place / _FACTS).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder))
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            _write(files, wanted, draft)
            _give_name(draft, place)
        except OSError as error:
            if error.filename in {str(file.path) for file in files}:
                raise
            raise _unwritable(folder, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return _mapped(place, key)


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{folder}: cannot be written ({error.strerror or in_a_line(error)}), and rows of files "
        "are kept there as columns. Make room, or name another folder in HF_DATASETS_CACHE.",
        kind="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None,
    )


def _key(files: Sequence[File], wanted: Mapping[str, str | None]) -> str:
    """Identify files by their place and their state, as `make` does."""
    states: list[Any] = []
    for file in files:
        with file.path.open("rb"):  # whoever may not read it may not read what was kept of it
            sign = file_sign(file.path)
        states.append([file.name, str(file.path.resolve()), *sign])
    whole = [_VERSION, states, sorted(wanted.items())]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _give_name(draft: Path, place: Path) -> None:
    """Rename what was written; another process may have been first with the same."""
    try:
        draft.rename(place)
    except OSError:
        if not (place / _FACTS).exists():
            raise


def _mapped(place: Path, key: str) -> FileTable:
    facts = json.loads((place / _FACTS).read_text(encoding="utf-8"))
    columns = {name: Column(*fields) for name, fields in facts["columns"].items()}
    arrays: dict[str, pa.ChunkedArray] = {}
    for number, (name, column) in enumerate(columns.items()):
        if column.flaw is None and column.shape is not None:
            mapped = pa.memory_map(str(place / f"{number}.arrow"))
            arrays[name] = pa.ipc.open_stream(mapped).read_all().column(0)
        elif column.flaw is None:
            arrays[name] = _nulls(facts["rows"])
    firsts = tuple((first, name) for first, name in facts["firsts"])
    table = pa.table(arrays or {"": _nulls(facts["rows"])})  # which says how many rows there are
    return FileTable(table, columns, tuple(facts["keys"]), firsts, key)


def _nulls(rows: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(rows, pa.large_string())])


def _write(files: Sequence[File], wanted: Mapping[str, str | None], folder: Path) -> None:
    """Read the files once, and write every column that is wanted."""
    keys: dict[str, None] = {}
    firsts: list[tuple[int, str]] = []
    batch = _Batch(wanted, folder)
    sizes = [file.path.stat().st_size for file in files]
    with progress(sum(sizes), "read the files", "bytes") as shown:
        for file, size in zip(files, sizes, strict=True):
            firsts.append((batch.rows, file.name))
            for row in _rows(file):
                batch.add(row, (file, row.number))
                if len(keys) < _MOST_KEYS:
                    keys.update(dict.fromkeys(row.values))
            shown.update(size)
    columns = batch.close()
    facts = {"rows": batch.rows, "keys": list(keys), "firsts": firsts, "columns": columns}
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _rows(file: File) -> Iterator[Row]:
    if file.kind != TEXT:
        yield from rows_of(file)
        return
    for number, line in lines_of(file):
        # As Python reads a file of text: `\r\n` and `\r` end a line, too.
        for text in line.removesuffix("\r").split("\r"):
            yield Row(number, {"text": text})


class _Batch:
    """Hands the rows of files to a writer a column, a batch at a time.

    Attributes:
        rows: The rows so far.
    """

    def __init__(self, wanted: Mapping[str, str | None], folder: Path) -> None:
        self._wanted, self._folder = wanted, folder
        self._writers: dict[str, ColumnWriter] = {}
        self._places: list[Place] = []  # of the rows that are not written yet
        self._first: Place | None = None
        self._characters = self.rows = 0

    def add(self, row: Row, place: Place) -> None:
        self._first = self._first or place
        index = len(self._places)
        self._places.append(place)
        for name, value in row.values.items():
            if name in self._wanted:
                writer = self._writers.get(name) or self._begin(name, index)
                self._characters += writer.add(index, value, place, is_suspect=row.is_suspect)
        if isinstance(row.values, Twice) and row.values.key in self._writers:
            self._writers[row.values.key].reject(place, f"has the key {row.values.key!r} twice")
        self.rows += 1
        if len(self._places) >= _BATCH_ROWS or self._characters > _BATCH_CHARACTERS:
            self._flush()

    def close(self) -> dict[str, Column]:
        """Write what is left, and describe the columns."""
        self._flush()
        return {name: writer.close() for name, writer in self._writers.items()}

    def _begin(self, name: str, index: int) -> ColumnWriter:
        assert self._first is not None
        file = self._folder / f"{len(self._writers)}.arrow"
        before = self.rows - index  # rows of earlier batches
        writer = ColumnWriter(name, self._wanted[name], file, before, self._first)
        self._writers[name] = writer
        return writer

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush(self._places)
        self._places, self._characters = [], 0
