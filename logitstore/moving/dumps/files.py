"""Read the rows of a dump in order: one file, a folder of them, or all that a pattern fits.

    .jsonl .ndjson .json    as a capture reads them (`rows/json_rows.py`), also .gz and .zst: a
                            block and a row at a time, each value as it is written
    .parquet                row group by row group, a few rows at a time

So no file is ever in memory as a whole. A response with several choices is several rows.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from logitstore.errors import InputError, in_a_line
from logitstore.format.parquet_limits import PYARROW_ERRORS
from logitstore.moving.dumps import responses
from logitstore.moving.dumps.row import plain
from logitstore.rows.files import LINES, PARQUET, VALUES, File, Seen, expand, is_pattern
from logitstore.rows.json_rows import rows_of
from logitstore.storage.files import FileSign, file_sign
from logitstore.text.strict_json import flaw_of

#: Kinds of files, in the order in which a folder is searched for them.
_KINDS = (PARQUET, LINES, VALUES)
_EXPECTED = ".parquet or .jsonl"
_PIECE_BYTES = 1024 * 1024
_BATCH_ROWS = 16
#: 128 entries for each of 32,000 tokens take 200 MB.
_LONGEST_LINE_BYTES = 1024 * 1024 * 1024

Row = Mapping[str, Any]


@dataclass
class Dump:
    """A reader of all rows of a dump, in order.

    Attributes:
        path: The file, folder or pattern, as the user named it.
        files: Its files, in the order of their names.
    """

    path: Path
    files: list[File] = field(init=False)

    def __post_init__(self) -> None:
        self.files = [
            File(path, str(path), longest_line_bytes=_LONGEST_LINE_BYTES)
            for path in _paths(self.path)
        ]
        self._signs = [_sign(file.path) for file in self.files]

    @property
    def folder(self) -> Path:
        """Return the folder that the first file is in."""
        return self.files[0].path.parent

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(sign.size_bytes for sign in self._signs)

    def rows(self, seen: Seen | None = None) -> Iterator[tuple[str, Row]]:
        """Yield (name for messages, row) for every row.

        Args:
            seen: Is told how many bytes of all files were read.

        Raises:
            InputError: A file cannot be read.
        """
        before = 0
        for file, sign in zip(self.files, self._signs, strict=True):
            for where, line in _rows_of(file, _further(seen, before)):
                for choice, row in enumerate(_choices(line, where)):
                    yield (f"{where}, choice {choice}" if choice else where), row
            before += sign.size_bytes
            if seen is not None:
                seen(before)

    def check(self) -> None:
        """Check that nothing was written to any file since all were first looked at.

        Raises:
            InputError: A file was written to, so that what was read may be of both.
        """
        for file, sign in zip(self.files, self._signs, strict=True):
            if _sign(file.path) != sign:
                raise InputError(f"{file.name}: has changed while it was imported. Start again.")

    def digest(self) -> str:
        """Return the SHA-256 of the SHA-256s of all files."""
        whole = hashlib.sha256()
        for file in self.files:
            one = hashlib.sha256()
            with file.path.open("rb") as f:
                while piece := f.read(_PIECE_BYTES):
                    one.update(piece)
            whole.update(one.digest())
        return whole.hexdigest()


def _paths(path: Path) -> list[Path]:
    if path.is_dir():
        there = [File.at(each) for each in sorted(path.iterdir()) if each.is_file()]
        for kind in _KINDS:
            if found := [file.path for file in there if file.kind == kind]:
                return found
        raise InputError(f"{path}: holds no {_EXPECTED} file. Name a dump.")
    if not path.exists() and not is_pattern(str(path)):
        raise InputError(f"{path}: no such file or folder. Name a dump.")
    paths = expand([str(path)])
    for each in paths:
        file = File.at(each)
        if file.kind not in _KINDS:
            raise InputError(
                f"{each}: unknown kind of file; expected {_EXPECTED} (this also with .gz or .zst), "
                f"found {file.ending or 'no ending'!r}. Convert it."
            )
    return paths


def _sign(file: Path) -> FileSign:
    try:
        return file_sign(file)
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror}). Fix its permissions.") from e


def _further(seen: Seen | None, before: int) -> Seen | None:
    return None if seen is None else lambda size: seen(before + size)


def _rows_of(file: File, seen: Seen | None) -> Iterator[tuple[str, Row]]:
    if file.kind == PARQUET:
        yield from _parquet_rows(file.path)
        return
    for row in rows_of(file, seen):
        where = f"{file.name}: line {row.number:,}"
        flaw = flaw_of(row.values, are_finite=False) if row.is_suspect else None
        if flaw is not None:
            raise InputError(f"{where}: {flaw}. Repair or drop the row.")
        yield where, row.values


def _choices(line: Row, where: str) -> list[Row]:
    if not responses.looks_like(line):
        return [line]
    readable = {name: plain(value, f"{where}: {name}") for name, value in line.items()}
    return list(responses.choices_of(readable, where))


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as opened:
            for number, row in enumerate(_raw_rows(opened)):
                where = f"{path}: row {number:,}"
                yield where, _readable(row, where)
    except PYARROW_ERRORS as e:
        raise InputError(
            f"{path}: cannot be read as Parquet ({in_a_line(e)}). Write it again."
        ) from e


def _raw_rows(file: pq.ParquetFile) -> Iterator[Row]:
    """Yield the rows, decoding a few at a time: a row group may not fit in memory."""
    for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
        for i in range(batch.num_rows):
            yield {name: batch.column(name)[i] for name in batch.schema.names}


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
