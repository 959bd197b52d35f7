"""The one zip profile a shard uses: written by us, and anything else is refused.

Stored members only, names sorted, 1980 timestamps, no flags, extra fields, descriptors or gaps,
below 4 GiB; the archive comment is the SHA-256, in hex, of all bytes before the end record. So
the same members are always the same bytes, and a reader can rebuild every header it expects and
compare: overlapping, hidden, lying or compressed entries have nowhere to be.

Any zip tool opens the result. Ours reads it through a memory map.
"""

import errno
import hashlib
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from logitstore.errors import CorruptStoreError, InputError
from logitstore.storage.files import Buffer, open_file
from logitstore.storage.paths import StorePath, local

_DOS_1980 = 0x0021 << 16  # date 1980-01-01 in the high half, time 00:00 in the low
LOCAL = struct.Struct("<4s3H4s3I2H")
CENTRAL = struct.Struct("<4s4H4s3I5H2I")
END = struct.Struct("<4s4H2IH")
DIGEST_CHARS = 64
_LIMIT_BYTES = 0xFFFF_FFFF
_STAMP = struct.pack("<I", _DOS_1980)


def local_header(name: bytes, crc: int, size: int) -> bytes:
    """The only local header that a member may have."""
    return LOCAL.pack(b"PK\3\4", 10, 0, 0, _STAMP, crc, size, size, len(name), 0) + name


def central_header(name: bytes, crc: int, size: int, offset: int) -> bytes:
    """The only entry of the directory that a member may have."""
    head = (b"PK\1\2", 10, 10, 0, 0, _STAMP, crc, size, size, len(name), 0, 0, 0, 0, 0, offset)
    return CENTRAL.pack(*head) + name


def pack(members: Mapping[str, Buffer]) -> Iterator[Buffer]:
    """The archive's bytes, in pieces; the last piece is the end record with the digest.

    Raises:
        InputError: The archive would reach 4 GiB.
    """
    digest, offset, directory = hashlib.sha256(), 0, b""
    for name in sorted(members):
        data, encoded = members[name], name.encode("ascii")
        crc = zlib.crc32(data)
        directory += central_header(encoded, crc, len(data), offset)
        header = local_header(encoded, crc, len(data))
        for piece in (header, data):
            digest.update(piece)
            yield piece
        offset += len(header) + len(data)
        if offset + len(directory) + END.size + DIGEST_CHARS > _LIMIT_BYTES:
            raise InputError(
                "a shard would exceed 4 GiB, the limit of its file format. Capture with a smaller "
                "--shard-text-bytes (a single row of that size cannot be stored; split it)."
            )
    digest.update(directory)
    yield directory
    count = len(members)
    end = (b"PK\5\6", 0, 0, count, count, len(directory), offset, DIGEST_CHARS)
    yield END.pack(*end) + digest.hexdigest().encode()


class Archive:
    """A mapped archive: member bytes by name, without copying.

    Attributes:
        digest: The SHA-256 the archive claims, in hex; `check_digest` holds it to it.
        size_bytes: The file's size.
    """

    def __init__(self, path: StorePath, file: BinaryIO | None = None) -> None:
        """Map the file and hold every header to the profile.

        Args:
            path: What it is, for people.
            file: Its bytes, where they are not at `path`: a local copy of an object. Closed here.

        Raises:
            CorruptStoreError: The file is missing, cut short, or not exactly of this profile.
        """
        self.path = path
        try:
            with file or open_file(local(path)) as f:
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise self._corrupt("the file is missing") from None
        except OSError as e:
            if e.errno == errno.ENOMEM:  # no room to map it: nothing is wrong with the file
                raise MemoryError(f"{path}: no memory to map it") from None
            raise self._corrupt(f"it cannot be read ({e.strerror})") from None
        except ValueError as e:
            raise self._corrupt(f"it cannot be read ({e})") from None
        self._view = memoryview(self._map)
        self.size_bytes = len(self._view)
        self._end = self.size_bytes - END.size - DIGEST_CHARS
        self._places = self._read_directory()
        self.digest = bytes(self._view[self._end + END.size :]).decode("ascii", "replace")

    @property
    def whole(self) -> memoryview:
        """Every byte of the file."""
        return self._view

    @property
    def names(self) -> list[str]:
        """The members, in order."""
        return list(self._places)

    def __getitem__(self, name: str) -> memoryview:
        start, size, _ = self._places[name]
        return self._view[start : start + size]

    def check_member(self, name: str) -> memoryview:
        """The member's bytes, held to their CRC-32: for what has no checksum of its own."""
        if zlib.crc32(self[name]) != self._places[name][2]:
            raise self._corrupt(f"the bytes of {name} do not match their checksum")
        return self[name]

    def check_digest(self) -> None:
        """Hash the whole file.

        Raises:
            CorruptStoreError: The bytes are not those that were committed.
        """
        found = hashlib.sha256(self._view[: self._end]).hexdigest()
        if found != self.digest:
            raise self._corrupt(
                f"SHA-256 is {found[:12]}…, but {self.digest[:12]}… was committed: the file "
                "changed after it was written"
            )

    def _read_directory(self) -> dict[str, tuple[int, int, int]]:
        if self._end < 0:
            raise self._corrupt(f"{self.size_bytes} bytes is too short for a shard: cut off?")
        end = END.unpack_from(self._view, self._end)
        _, _, _, count, _, directory_size, directory_start, _ = end
        wanted = (b"PK\5\6", 0, 0, count, count, directory_size, directory_start, DIGEST_CHARS)
        if end != wanted or directory_start + directory_size != self._end:
            raise self._corrupt("the end record is not where and what it must be: cut off?")
        places: dict[str, tuple[int, int, int]] = {}
        cursor, data_start, previous = directory_start, 0, b""
        for _ in range(count):
            name, crc, size, cursor = self._read_entry(cursor, data_start)
            if name <= previous:
                raise self._corrupt("members are not in sorted order")
            start = data_start + LOCAL.size + len(name)
            if start + size > directory_start:
                raise self._corrupt("a member reaches into the directory")
            places[name.decode("ascii", "replace")] = (start, size, crc)
            data_start, previous = start + size, name
        if cursor != self._end or data_start != directory_start:
            raise self._corrupt("bytes lie between or behind the members")
        return places

    def _read_entry(self, cursor: int, data_start: int) -> tuple[bytes, int, int, int]:
        """One directory entry, both of its headers equal to the only ones allowed."""
        if cursor + CENTRAL.size > self._end:
            raise self._corrupt("the directory is cut off")
        fields = CENTRAL.unpack_from(self._view, cursor)
        crc, size, name_length = fields[6], fields[7], fields[9]
        stop = cursor + CENTRAL.size + name_length
        name = bytes(self._view[cursor + CENTRAL.size : stop])
        local = local_header(name, crc, size)
        if (
            self._view[cursor:stop] != central_header(name, crc, size, data_start)
            or self._view[data_start : data_start + len(local)] != local
        ):
            raise self._corrupt("a member's header is not of the profile that shards use")
        return name, crc, size, stop

    def _corrupt(self, why: str) -> CorruptStoreError:
        return CorruptStoreError(f"{self.path}: {why}.", path=self.path)


_TAIL_BYTES = 128 * 1024


_MAX_DIRECTORY_BYTES = 64 * 1024  # ours take about 3 KB


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
