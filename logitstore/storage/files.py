"""Reading of files from a store that may come from strangers: ordinary files only, and size limits.

A JSON text of a few megabytes can make a parser use a hundred times its size, and a name can belong
to a pipe that never ends. So only ordinary files are opened, and a file that is parsed has a limit.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

Buffer = bytes | bytearray | memoryview

#: `store.json` holds one number per shard; this is room for 900,000 of them.
MAX_SPEC_BYTES = 8 * 1024 * 1024
MAX_SEAL_BYTES = 1024 * 1024
#: Of a file of a tokenizer; the largest that is known takes 35 MB.
MAX_TOKENIZER_BYTES = 256 * 1024 * 1024
#: More than two seconds, in which some file systems count time: a file that was written no longer
#: ago than this may be written again without another time.
TICK_NS = 3 * 10**9
_PIECE_BYTES = 1024 * 1024


class FileSign(NamedTuple):
    """What a file that was written anew cannot keep all of, whatever sets its time back.

    Attributes:
        size_bytes: Its size.
        mtime_ns: When its content changed last, as it says itself: any program may set that.
        ctime_ns: When anything of it changed last; the system alone sets that.
        inode: Its number in its file system; a file that takes its name has another.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def file_sign(path: Path) -> FileSign:
    """Look at a file, without a look into it: two equal signs mean that nothing was written.

    Raises:
        OSError: It cannot be looked at.
    """
    return sign_of(path.stat())


def sign_of(about: os.stat_result) -> FileSign:
    """Take the sign of a file from what the system says of it."""
    return FileSign(about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)


def open_file(path: Path) -> BinaryIO:
    """Open an ordinary file for reading, without ever waiting, as opening a pipe would.

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
    with open_file(path) as f:  # room is made for as much as is asked for
        data = f.read(min(limit, os.fstat(f.fileno()).st_size) + 1)
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
