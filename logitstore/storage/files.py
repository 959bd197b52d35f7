"""Small files from a store that may come from anywhere: bounded before they are parsed.

A store is data from strangers. A JSON text of a few megabytes can ask a parser for a hundred times
its size, a name can be a pipe that never ends, a number can be `NaN`. So: ordinary files only, a
size limit for each, and a count of brackets and quotes (each becomes an object) before parsing.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath

#: `store.json` holds a number a shard; this is room for 900,000 of them.
MAX_SPEC_BYTES = 8 * 1024 * 1024
MAX_SEAL_BYTES = 1024 * 1024


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


def read_file(path: StorePath, limit: int) -> bytes:
    """All bytes of an ordinary file, or of an object.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not an ordinary file, or has more than `limit` bytes.
    """
    if isinstance(path, RemotePath):
        return path.read_limited(limit)
    with open_file(path) as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes, the most it may have")
    return data


_PIECE_BYTES = 1024 * 1024


def file_sha256(path: StorePath) -> str:
    """SHA-256 of an ordinary file or an object, in hex."""
    digest = hashlib.sha256()
    if isinstance(path, RemotePath):
        for piece in path.pieces():
            digest.update(piece)
        return digest.hexdigest()
    with open_file(path) as f:
        while piece := f.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


Buffer = bytes | bytearray | memoryview
