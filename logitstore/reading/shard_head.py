"""What a shard says of itself, from its end alone: a hundred kilobytes instead of the whole.

The group (`zarr.json`) is the last member of the archive and the directory follows it, so one read
of the end gives sizes, fidelity and digest; with one more of `sequence_records`, the records of
every sequence. So a store of ten thousand shards can be counted, listed and sealed without moving
its entries, be it in a folder or in a bucket. Nothing that a loss reads comes from here.
"""

import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from logitstore.errors import CorruptStoreError, StorageError
from logitstore.format.rows_parquet import LINE_DIGEST_BYTES, LinesReader
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.shard_arrays import array_specs
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zarr_arrays import ArrayReader
from logitstore.format.zip_archive import CENTRAL, DIGEST_CHARS, END, LOCAL, central_header
from logitstore.reading.shard import checked_size, read_group
from logitstore.storage.files import open_file
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath

_TAIL_BYTES = 128 * 1024
_MAX_DIRECTORY_BYTES = 64 * 1024  # ours take about 3 KB
_AT_ONCE = 16

T = TypeVar("T")


class ArchiveEnd:
    """The directory of an archive, and its members one at a time.

    Attributes:
        digest: The SHA-256 that the archive claims, in hex.
        size_bytes: Of the file.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        """Read the end.

        Raises:
            ValueError: It is not that of a shard.
        """
        self.size_bytes, self._read = size, read
        self._start = max(0, size - _TAIL_BYTES)
        self._tail = read(self._start, size)
        end = size - END.size - DIGEST_CHARS
        if end < 0 or len(self._tail) != size - self._start:
            raise ValueError(f"{size} bytes is too short for a shard: cut off?")
        self._places = self._directory(end)
        if self._places and max(start for start, _, _ in self._places.values()) < self._start:
            raise ValueError("its last member has more bytes than a group can need")
        self.digest = self._tail[-DIGEST_CHARS:].decode("ascii", "replace")

    @property
    def names(self) -> list[str]:
        """The members, in order."""
        return list(self._places)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each member."""
        return {name: size for name, (_, size, _) in self._places.items()}

    def check_member(self, name: str) -> memoryview:
        """The member's bytes, held to their CRC-32.

        Raises:
            ValueError: They do not match it.
        """
        start, size, crc = self._places[name]
        inside = start - self._start
        data = (
            self._tail[inside : inside + size] if inside >= 0 else self._read(start, start + size)
        )
        if len(data) != size or zlib.crc32(data) != crc:
            raise ValueError(f"the bytes of {name} do not match their checksum")
        return memoryview(data)

    def _directory(self, end: int) -> dict[str, tuple[int, int, int]]:
        """(offset, size, checksum) of every member; `Archive` also holds the local headers."""
        _, _, _, count, _, length, begin, _ = END.unpack_from(self._tail, end - self._start)
        wanted = END.pack(b"PK\5\6", 0, 0, count, count, length, begin, DIGEST_CHARS)
        if self._tail[-DIGEST_CHARS - END.size : -DIGEST_CHARS] != wanted or begin + length != end:
            raise ValueError("the end record is not where and what it must be: cut off?")
        if length > _MAX_DIRECTORY_BYTES:
            raise ValueError("the directory is larger than that of a shard")
        data = self._tail[begin - self._start : end - self._start]
        places: dict[str, tuple[int, int, int]] = {}
        cursor = offset = 0
        for _ in range(count):
            if cursor + CENTRAL.size > len(data):
                raise ValueError("the directory is cut off")
            fields = CENTRAL.unpack_from(data, cursor)
            crc, size, stop = fields[6], fields[7], cursor + CENTRAL.size + fields[9]
            name = data[cursor + CENTRAL.size : stop]
            if data[cursor:stop] != central_header(name, crc, size, offset):
                raise ValueError("a member's header is not of the profile that shards use")
            start = offset + LOCAL.size + len(name)
            if start + size > begin:
                raise ValueError("a member reaches into the directory")
            places[name.decode("ascii", "replace")] = (start, size, crc)
            cursor, offset = stop, start + size
        if cursor != len(data) or offset != begin:
            raise ValueError("bytes lie between or behind the members")
        return places


class Skimmed:
    """A shard by its end.

    Attributes:
        about: The group's attributes: rows, fidelity, statuses.
        size: How much it holds.
        archive: Its directory.
    """

    def __init__(
        self,
        path: StorePath,
        spec: StoreSpec,
        plan: Plan,
        index: int,
        size_bytes: int | None = None,
    ) -> None:
        """Read the end of the file or object, and hold it to spec and plan.

        Args:
            path: Where it lies.
            spec: The store's.
            plan: The store's.
            index: Which shard.
            size_bytes: Of the file, where that is known: it saves a request.

        Raises:
            CorruptStoreError: It is missing, cut off, or another store's.
            StorageError: The object store refuses.
        """
        self.path, self._spec, self._rows = path, spec, plan.shard_rows(index)
        try:
            self.archive = ArchiveEnd(*_reader(path, size_bytes))
            self.about = read_group(self.archive, spec, plan, index)
            self.size = checked_size(self.about, spec, plan, index)
        except StorageError:  # of a bucket: it says what to do
            raise
        except FileNotFoundError:
            self._raise("it is missing")
        except OSError as e:
            self._raise(f"it cannot be read ({e.strerror})")
        except (ValueError, KeyError, TypeError) as e:
            self._raise(str(e))
        if self.size.sequences * LINE_DIGEST_BYTES > self.archive.size_bytes:
            self._raise(f"it is too small to hold {self.size.sequences} lines")

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """Records of each sequence.

        Raises:
            CorruptStoreError: Their bytes are damaged.
        """
        spec = next(s for s in array_specs(self._spec, self.size) if s.name == "sequence_records")
        try:
            reader = ArrayReader(spec, self.archive.check_member(spec.data_member))
            offsets = reader[slice(0, self.size.sequences + 1)].astype(np.int64)
        except (ValueError, KeyError) as e:
            self._raise(str(e))
        counts = np.diff(offsets)
        if offsets[0] != 0 or offsets[-1] != self.size.records or (counts < 0).any():
            self._raise("sequence_records does not divide the records among the sequences")
        return counts

    @cached_property
    def sequence_rows(self) -> npt.NDArray[np.int64]:
        """The dataset row of each sequence; the text is read only where rows have several.

        Raises:
            CorruptStoreError: Their bytes are damaged.
        """
        first, stop = self._rows
        if self.size.sequences == stop - first:  # every row has a line
            return np.arange(first, stop, dtype=np.int64)
        try:
            lines = LinesReader(self.archive.check_member(LINES_MEMBER), self.size.sequences)
            return np.array(lines.rows(first, stop), np.int64)
        except (ValueError, KeyError) as e:
            self._raise(f"{LINES_MEMBER}: {e}")

    def member_bytes(self) -> dict[str, int]:
        """Compressed bytes of each array, and of the text."""
        arrays = [s for s in array_specs(self._spec, self.size) if s.chunk_count]
        try:
            found = {s.name: self.archive.sizes[s.data_member] for s in arrays}
            return found | {LINES_MEMBER: self.archive.sizes[LINES_MEMBER]}
        except KeyError as e:
            self._raise(f"it has no {e}")

    def _raise(self, why: str) -> NoReturn:
        rows, store = (self._rows[0], self._rows[1] - 1), self.path.parent.parent
        where = f"row {rows[0]:,}" if rows[0] == rows[1] else f"rows {rows[0]:,} to {rows[1]:,}"
        raise CorruptStoreError(
            f"{self.path}: {where}: {why.rstrip('.')}. Nothing was returned in its place. See "
            f"`logitstore verify {store}`; then restore the file from a copy, or run `logitstore "
            f"repair {store}` to redo just this shard.",
            path=self.path,
            rows=rows,
        ) from None


def _reader(path: StorePath, size_bytes: int | None) -> tuple[int, Callable[[int, int], bytes]]:
    """The size of a file or object, and how to read some of it."""
    if isinstance(path, RemotePath):
        return path.size_bytes() if size_bytes is None else size_bytes, path.read_range

    def read(start: int, stop: int) -> bytes:
        with open_file(path) as f:
            return os.pread(f.fileno(), stop - start, start)

    return os.stat(path).st_size, read


def for_each(items: Iterable[int], what: Callable[[int], T], *, at_once: bool) -> list[T]:
    """`what` of every item, in order; several requests at once, where waiting is what costs."""
    if not at_once:
        return [what(i) for i in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(what, items))
