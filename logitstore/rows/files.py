"""Find the files that a user names, tell their kind by their ending, and read them line by line.

A name may hold `*`, `?` or `[…]`, as in a shell, and then stands for all files that it fits, in the
order of their names. A compressed file is never there whole, neither in memory nor on disk: a
small one may hold terabytes.
"""

from __future__ import annotations

import codecs
import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from logitstore.errors import InputError, in_a_line

LINES, VALUES, TEXT, PARQUET = "lines", "values", "text", "parquet"
#: What files of each ending hold.
KINDS = {".jsonl": LINES, ".ndjson": LINES, ".json": VALUES, ".txt": TEXT, ".parquet": PARQUET}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
#: Is told, as a file is read, how many of its bytes have been.
Seen = Callable[[int], None]
_BLOCK_BYTES = 1024 * 1024
_MOST_LINE_BYTES = 128 * 1024 * 1024


class File(NamedTuple):
    """A file of rows.

    Attributes:
        path: Where it lies.
        name: What it is called in messages; its ending tells its kind.
        longest_line_bytes: How long a line may be; None: as long as of any file of a dataset.
    """

    path: Path
    name: str
    longest_line_bytes: int | None = None

    @classmethod
    def at(cls, path: Path) -> File:
        """Describe a file that keeps its own name."""
        return cls(path, str(path))

    @property
    def kind(self) -> str | None:
        """What it holds, of `KINDS`; None for an ending that is not known."""
        stem = self.name.removesuffix(self.ending) if self.compression else self.name
        kind = KINDS.get(Path(stem).suffix)
        return None if self.compression and kind == PARQUET else kind

    @property
    def compression(self) -> str | None:
        """How it is compressed; None: it is not."""
        return _COMPRESSIONS.get(self.ending)

    @property
    def ending(self) -> str:
        """The last part of its name."""
        return Path(self.name).suffix

    @property
    def most_line_bytes(self) -> int:
        """How long a line, or a value of a JSON list, may be: the whole of it is in memory."""
        return _MOST_LINE_BYTES if self.longest_line_bytes is None else self.longest_line_bytes


def expand(names: Sequence[str]) -> list[Path]:
    """List the files that names stand for, in the order of the names.

    Raises:
        InputError: A pattern that no file fits, or a file that is named twice.
    """
    found: list[Path] = []
    for name in names:
        if not is_pattern(name):
            found.append(Path(name))
            continue
        fitting = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
        if not fitting:
            raise InputError(
                f"{name}: no file fits this pattern. Check it and the folder that it starts in, or "
                "give the names of files."
            )
        found += fitting
    resolved = [path.resolve() for path in found]
    twice = next((p for i, p in enumerate(found) if resolved[i] in resolved[:i]), None)
    if twice is not None:
        raise InputError(
            f"{twice}: is named twice, so each of its rows would count twice. Leave one out."
        )
    return found


def is_pattern(name: str) -> bool:
    """Tell whether a name stands for the files that fit it, and not for itself."""
    return any(sign in name for sign in "*?[") and not Path(name).exists()


def blocks_of(file: File, seen: Seen | None = None) -> Iterator[bytes]:
    """Read a file, decompressed where its ending says so, a block at a time.

    Args:
        file: The file.
        seen: Is told how far it was read.

    Raises:
        InputError: It is not compressed as its ending says, or cut off.
        OSError: It cannot be read.
    """
    with file.path.open("rb") as raw:
        if file.compression is None:
            while block := raw.read(_BLOCK_BYTES):
                if seen is not None:
                    seen(raw.tell())
                yield block
            return
        try:
            packed = pa.PythonFile(raw, mode="r")
            with pa.input_stream(packed, compression=file.compression) as stream:
                while block := stream.read(_BLOCK_BYTES):
                    if seen is not None:
                        seen(raw.tell())
                    yield block
        except OSError as error:  # Arrow's, of the decompression
            raise InputError(
                f"{file.name}: cannot be decompressed as {file.compression} ({in_a_line(error)}). "
                "Download it again, or give the file that it was made of."
            ) from error


def lines_of(file: File, seen: Seen | None = None) -> Iterator[tuple[int, str]]:
    """Read the lines of a file of UTF-8 text, each with its number; `\\n` ends one.

    Args:
        file: The file.
        seen: Is told how far it was read.

    Raises:
        InputError: A line that is not UTF-8, or longer than the file's may be; names it.
        OSError: The file cannot be read.
    """
    number, pieces, size = 1, list[bytes](), 0
    for block in blocks_of(file, seen):
        first, *others = block.split(b"\n")
        for after in others:
            pieces.append(first)
            yield number, _decoded(b"".join(pieces), file, number)
            first, pieces, size, number = after, [], 0, number + 1
        pieces.append(first)
        size += len(first)
        if size > file.most_line_bytes:
            raise too_long(file, number)
    if size:
        yield number, _decoded(b"".join(pieces), file, number)


def too_long(file: File, number: int) -> InputError:
    """Make the error for a line, or a value, that does not fit in memory."""
    return InputError(
        f"{file.name}: line {number:,} is longer than {file.most_line_bytes:,} bytes. Write a row "
        "a line, and cut what is longer."
    )


def not_utf8(file: File, line: int, error: UnicodeDecodeError) -> InputError:
    """Make the error for bytes that are no text, in or behind a line."""
    line += error.object[: error.start].count(b"\n")
    return InputError(
        f"{file.name}: line {line:,} is not UTF-8 (byte 0x{error.object[error.start]:02X}). "
        f"Convert the file: iconv -f ENCODING -t UTF-8 {Path(file.name).name}."
    )


def _decoded(line: bytes, file: File, number: int) -> str:
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(file, number, error) from None
