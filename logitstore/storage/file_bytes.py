"""Read parts of an open file that may change meanwhile: then an error, never a dead process.

A memory map is as fast, but a file that becomes shorter while it is mapped (`cp` over it, `rsync
--inplace`, a disk that fails) ends the process by a signal at the next look at what is gone.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, Protocol

_PIECE_BYTES = 1024 * 1024


class Bytes(Protocol):
    """Bytes that are read by slices: `FileBytes`, or what lies in memory."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> "bytes | memoryview": ...


class FileBytes:
    """A part of an open file, read when it is asked for, by any number of threads at once.

    The file is closed when nothing reads it any more.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Take the whole of a file; the caller closes its own handle."""
        self._file, self._start = _Descriptor(os.dup(file.fileno())), 0
        self._size = os.fstat(self._file.number).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """Read the bytes of a slice without a step.

        Raises:
            ValueError: The file has become shorter, or cannot be read.
        """
        start, stop, _ = part.indices(self._size)
        return self._file.read(self._start + start, max(stop - start, 0))

    def __bytes__(self) -> bytes:
        return self[:]

    def part(self, start: int, size: int) -> "FileBytes":
        """Take a part of these bytes, without reading it."""
        part = object.__new__(FileBytes)
        part._file, part._start, part._size = self._file, self._start + start, size
        return part

    def pieces(self) -> Iterator[bytes]:
        """Read all, a megabyte at a time."""
        return (self[at : at + _PIECE_BYTES] for at in range(0, self._size, _PIECE_BYTES))


class _Descriptor:
    """An open file by its number, closed with the last `FileBytes` that reads it."""

    def __init__(self, number: int) -> None:
        self.number = number
        # Kept, for the names of modules may be gone where a program ends.
        self._close = os.close

    def __del__(self) -> None:
        self._close(self.number)

    def read(self, start: int, size: int) -> bytes:
        try:
            data = os.pread(self.number, size, start)
            while len(data) < size:  # one call reads 2 GiB at most
                more = os.pread(self.number, size - len(data), start + len(data))
                if not more:
                    raise ValueError("the file became shorter while it was read")
                data += more
        except OSError as e:
            raise ValueError(f"the file cannot be read ({e.strerror})") from None
        return data
