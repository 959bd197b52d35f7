"""Read the rows of a dump: one Parquet or JSONL file or a folder of them, from any row.

JSONL is read line by line and Parquet row group by row group, so no file is ever in memory as a
whole. A response with several choices is several rows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from logitstore.errors import InputError, in_a_line
from logitstore.format.parquet_limits import PYARROW_ERRORS
from logitstore.moving.dumps import responses
from logitstore.moving.dumps.row import plain
from logitstore.rows.files import most_line_bytes
from logitstore.storage.files import FileSign, file_sign

_ENDINGS = (".parquet", ".jsonl", ".json")
_PIECE_BYTES = 1024 * 1024
_BATCH_ROWS = 16

Row = Mapping[str, Any]


class Place(NamedTuple):
    """The place where a row of a dump begins.

    Attributes:
        file: The number of the file.
        at: The byte in a JSONL file; the row in a Parquet file.
        line: The line in a JSONL file, from 1; the row in a Parquet file, from 0.
        choice: The number of the choice in a response.
    """

    file: int
    at: int
    line: int
    choice: int = 0


@dataclass
class Dump:
    """A reader of all rows of a dump, in order.

    Attributes:
        path: The file or folder, as the user named it.
        files: Its files, in the order of their names.
    """

    path: Path
    files: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.files = _files(self.path)
        self._signs = [_sign(file) for file in self.files]

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(sign.size_bytes for sign in self._signs)

    def rows(self, start: Place | None = None) -> Iterator[tuple[Place, str, Row]]:
        """Yield (place, name for messages, row) for every row from `start`.

        Raises:
            InputError: A file cannot be read.
        """
        start = start or Place(0, 0, 0)
        for number in range(start.file, len(self.files)):
            file = self.files[number]
            first = start if number == start.file else Place(number, 0, 0)
            read = _parquet_rows if file.suffix == ".parquet" else _json_lines
            for place, where, line in read(file, first):
                for choice, row in enumerate(_choices(line, where)):
                    if (number, place.at, choice) >= (start.file, start.at, start.choice):
                        name = f"{where}, choice {choice}" if choice else where
                        yield place._replace(choice=choice), name, row

    def check(self) -> None:
        """Check that nothing was written to any file since all were first looked at.

        Raises:
            InputError: A file was written to, so that what was read may be of both.
        """
        for file, sign in zip(self.files, self._signs, strict=True):
            if _sign(file) != sign:
                raise InputError(f"{file}: has changed while it was imported. Start again.")

    def bytes_before(self, place: Place) -> int:
        """Return the bytes before a place, for progress; a Parquet file counts when it is done."""
        before = sum(sign.size_bytes for sign in self._signs[: place.file])
        return before + (place.at if self.files[place.file].suffix != ".parquet" else 0)

    def digest(self) -> str:
        """Return the SHA-256 of the SHA-256s of all files."""
        whole = hashlib.sha256()
        for file in self.files:
            one = hashlib.sha256()
            with file.open("rb") as f:
                while piece := f.read(_PIECE_BYTES):
                    one.update(piece)
            whole.update(one.digest())
        return whole.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        for ending in _ENDINGS:
            if files := sorted(path.glob(f"*{ending}")):
                return files
        raise InputError(f"{path}: holds no .parquet or .jsonl file. Name a dump.")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder. Name a dump.")
    if path.suffix not in _ENDINGS:
        raise InputError(
            f"{path}: unknown kind of file; expected .parquet or .jsonl, found "
            f"{path.suffix or 'no ending'!r}. Convert it."
        )
    return [path]


def _sign(file: Path) -> FileSign:
    try:
        return file_sign(file)
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror}). Fix its permissions.") from e


def _choices(line: Row, where: str) -> list[Row]:
    if not responses.looks_like(line):
        return [line]
    readable = {name: plain(value) for name, value in line.items()}
    return list(responses.choices_of(readable, where))


def _json_lines(file: Path, start: Place) -> Iterator[tuple[Place, str, Row]]:
    with file.open("rb") as f:
        f.seek(start.at)
        at, number = start.at, max(start.line - 1, 0)
        while raw := f.readline(most_line_bytes() + 1):
            number += 1
            if len(raw) > most_line_bytes():
                raise InputError(
                    f"{file}: line {number:,} is longer than {most_line_bytes():,} bytes. Write a "
                    "row a line, and cut what is longer."
                )
            place, at = Place(start.file, at, number), at + len(raw)
            if raw.strip():
                where = f"{file}: line {number:,}"
                yield place, where, _parsed(raw, where)


def _parsed(raw: bytes, where: str) -> Row:
    try:
        parsed = json.loads(raw)
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8. Write the file again as UTF-8.") from None
    except RecursionError:
        raise InputError(f"{where} is nested too deeply. Drop the line.") from None
    except ValueError as e:
        raise InputError(
            f"{where} is not JSON ({in_a_line(e)}). Each line must be one object; "
            "`jq -c . FILE` writes them so."
        ) from None
    if not isinstance(parsed, dict):
        raise InputError(
            f"{where} is not an object, but {type(parsed).__name__}. Each line must be one object."
        )
    return parsed


def _parquet_rows(file: Path, start: Place) -> Iterator[tuple[Place, str, Row]]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            first = 0
            for group in range(opened.num_row_groups):
                count = opened.metadata.row_group(group).num_rows
                if first + count > start.at:
                    for at, row in _group_rows(opened, group, first):
                        if at >= start.at:
                            where = f"{file}: row {at:,}"
                            yield Place(start.file, at, at), where, _readable(row, where)
                first += count
    except PYARROW_ERRORS as e:
        raise InputError(
            f"{file}: cannot be read as Parquet ({in_a_line(e)}). Write it again."
        ) from e


def _group_rows(file: pq.ParquetFile, group: int, at: int) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a row group, decoding a few at a time: a group may not fit in memory."""
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False):
        for i in range(batch.num_rows):
            yield at, {name: batch.column(name)[i] for name in batch.schema.names}
            at += 1


def _readable(row: Row, where: str) -> Row:
    """Convert a row to Python's types, but keep lists as Arrow's: fewer Python objects are made."""
    converted = {}
    for name, value in row.items():
        if value.is_valid:
            try:
                converted[name] = value if hasattr(value, "values") else value.as_py()
            except UnicodeDecodeError:
                raise InputError(f"{where}: {name} is not UTF-8 text. Drop the row.") from None
    return converted
