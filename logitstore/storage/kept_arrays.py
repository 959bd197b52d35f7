"""Keep arrays that take long to make in a folder of the user's cache, and map the large ones.

A mapped array takes no memory of a process: all processes of a machine share what the system keeps
of the file, and it takes that back when it needs it. Files get their name when they are whole, and
nobody writes to one afterwards: a damaged one is replaced, and stays for whoever has mapped it.
Each ends with its SHA-256, compared in every process that opens it. One process makes an array
while the others wait for it.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitstore.storage.commit import temporary
from logitstore.storage.file_bytes import FileBytes
from logitstore.storage.files import open_file

I64 = npt.NDArray[np.int64]
#: From this size on an array is mapped; a smaller one is read, which costs a process less than a
#: worry.
MAPPED_BYTES = 1 << 26
_DIGEST_BYTES = hashlib.sha256().digest_size


def kept_array(
    folder: Path, name: str, length: int | None, make: Callable[[], Iterable[I64]]
) -> I64:
    """Find an array that is kept in a cache, or make it and keep it.

    Args:
        folder: The cache.
        name: Everything that the array depends on.
        length: The length that it must have, where that is known.
        make: Makes it, part by part.

    Returns:
        The array, read-only; in memory where the cache cannot be written.
    """
    path = folder / "sequences" / f"{hashlib.sha256(name.encode()).hexdigest()}.i64"
    with suppress(OSError, ValueError):
        return mapped(path, length)
    try:
        with exclusive(folder / "locks" / f"arrays-{path.name[:2]}"):
            with suppress(OSError, ValueError):  # made by another process meanwhile
                return mapped(path, length)
            return keep(path, make(), length)
    except OSError:  # a full or read-only disk only costs the time, and the memory, to make it
        parts = list(make())
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def keep(path: Path, parts: Iterable[I64], length: int | None = None) -> I64:
    """Write an array part by part, and map it.

    Raises:
        OSError: The file system failed; there is no file then.
        ValueError: It has another length.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed, found = temporary(path), hashlib.sha256()
    try:
        with unnamed.open("xb") as file:
            for part in parts:
                data = part.astype("<i8").tobytes()
                found.update(data)
                file.write(data)
            file.write(found.digest())
            file.flush()
            os.fsync(file.fileno())
        unnamed.replace(path)
    finally:
        unnamed.unlink(missing_ok=True)
    return mapped(path, length)


def mapped(path: Path, length: int | None = None) -> I64:
    """Open an array that was kept, once its bytes have their digest; a large one is mapped.

    Raises:
        OSError: There is none.
        ValueError: It has another length, or other bytes than were written.
    """
    with open_file(path) as file:
        whole = FileBytes(file)
        size = len(whole) - _DIGEST_BYTES
        if size < 0 or size % 8 or length not in (None, size // 8):
            raise ValueError(f"{path}: is not an array of {length} numbers")
        found = hashlib.sha256()
        for piece in whole.part(0, size).pieces():
            found.update(piece)
        if found.digest() != whole[size:]:
            raise ValueError(f"{path}: is not what was written")
        if size < MAPPED_BYTES:
            read: I64 = np.frombuffer(whole[:size], "<i8")
            return read
        array: I64 = np.memmap(file, "<i8", mode="r", shape=(size // 8,))
        return array


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of a file; the kernel releases it if the process dies.

    Raises:
        OSError: The file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks: two may do the same work
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
