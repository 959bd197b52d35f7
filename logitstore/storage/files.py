"""Small files from a store that may come from anywhere: bounded before they are parsed.

A store is data from strangers. A JSON text of a few megabytes can ask a parser for a hundred times
its size, a name can be a pipe that never ends, a number can be `NaN`. So: ordinary files only, a
size limit for each, and a count of brackets and quotes (each becomes an object) before parsing.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

Buffer = bytes | bytearray | memoryview

#: `store.json` holds a number a shard; this is room for 900,000 of them.
MAX_SPEC_BYTES = 8 * 1024 * 1024
MAX_SEAL_BYTES = 1024 * 1024
_PIECE_BYTES = 1024 * 1024


def open_file(path: Path) -> BinaryIO:
    """An ordinary file, open for reading; never waits, as opening a pipe would.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is a pipe, a device, a folder or the like.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise ValueError("it is not an ordinary file")
    return os.fdopen(opened, "rb")


def read_file(path: Path, limit: int) -> bytes:
    """Read all bytes of an ordinary file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not an ordinary file, or has more than `limit` bytes.
    """
    with open_file(path) as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes, the most it may have")
    return data


def file_pieces(path: Path) -> Iterator[bytes]:
    """Read an ordinary file, a megabyte at a time."""
    with open_file(path) as f:
        while piece := f.read(_PIECE_BYTES):
            yield piece


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of an ordinary file, in hex."""
    digest = hashlib.sha256()
    for piece in file_pieces(path):
        digest.update(piece)
    return digest.hexdigest()
