"""Write and read the one zip profile that shards use; anything else is rejected.

Stored members only, names sorted, 1980 timestamps, no flags, extra fields, descriptors or gaps,
below 4 GiB; the archive comment is the SHA-256, in hex, of all bytes before the end record. So
the same members are always the same bytes, and a reader can rebuild every header it expects and
compare: overlapping, hidden, lying or compressed entries have nowhere to be.

Any zip tool opens the result. This module reads parts of it, when they are asked for.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

from logitstore.errors import CorruptStoreError, InputError
from logitstore.storage.file_bytes import FileBytes
from logitstore.storage.files import Buffer, open_file
from logitstore.storage.paths import StorePath, local

_DOS_1980 = 0x0021 << 16  # date 1980-01-01 in the high half, time 00:00 in the low
LOCAL = struct.Struct("<4s3H4s3I2H")
CENTRAL = struct.Struct("<4s4H4s3I5H2I")
END = struct.Struct("<4s4H2IH")
DIGEST_CHARS = 64
_LIMIT_BYTES = 0xFFFF_FFFF
_TAIL_BYTES = 128 * 1024  # of a file, read to find the directory and the last member
_MAX_DIRECTORY_BYTES = 64 * 1024  # a shard's takes about 3 KB
_END_BYTES = _MAX_DIRECTORY_BYTES + END.size + DIGEST_CHARS
_WRONG_HEADER = "a member's header is not of the profile that shards use"
_STAMP = struct.pack("<I", _DOS_1980)


def local_header(name: bytes, crc: int, size: int) -> bytes:
    """Build the only local header that a member may have."""
    return LOCAL.pack(b"PK\3\4", 10, 0, 0, _STAMP, crc, size, size, len(name), 0) + name


def central_header(name: bytes, crc: int, size: int, offset: int) -> bytes:
    """Build the only directory entry that a member may have."""
    head = (b"PK\1\2", 10, 10, 0, 0, _STAMP, crc, size, size, len(name), 0, 0, 0, 0, 0, offset)
    return CENTRAL.pack(*head) + name


def pack(members: Mapping[str, Buffer]) -> Iterator[Buffer]:
    """Yield the archive's bytes in pieces; the last piece is the end record with the digest.

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


class Member(NamedTuple):
    """The place of a member's bytes in the archive, and their CRC-32."""

    start: int
    size: int
    crc: int


def read_directory(tail: memoryview, size: int) -> dict[str, Member]:
    """Read the directory of a zip file, and check that it accounts for every byte.

    Args:
        tail: The last bytes of the archive, or all of them.
        size: How many the archive has.

    Returns:
        The members by name. The headers in front of them are not in the tail, and not checked.

    Raises:
        ValueError: It is not one that `pack` wrote.
    """
    end = len(tail) - END.size - DIGEST_CHARS
    if end < 0:
        raise ValueError(f"{size} bytes is too short for a shard: cut off?")
    _, _, _, count, _, length, first, _ = record = END.unpack_from(tail, end)
    expected = (b"PK\5\6", 0, 0, count, count, length, first, DIGEST_CHARS)
    if record != expected or first + length != size - END.size - DIGEST_CHARS:
        raise ValueError("the end record is not where and what it must be: cut off?")
    if size > _LIMIT_BYTES:
        raise ValueError(f"{size} bytes is too large for a shard, which is below 4 GiB")
    if length > min(_MAX_DIRECTORY_BYTES, end):
        raise ValueError("the directory is larger than that of a shard")
    members: dict[str, Member] = {}
    directory, cursor, data_start, previous = tail[end - length : end], 0, 0, b""
    for _ in range(count):
        name, member, cursor = _read_entry(directory, cursor, data_start)
        if name <= previous:
            raise ValueError("members are not in sorted order")
        if member.start + member.size > first:
            raise ValueError("a member reaches into the directory")
        members[name.decode("ascii")] = member
        data_start, previous = member.start + member.size, name
    if cursor != length or data_start != first:
        raise ValueError("bytes lie between or behind the members")
    return members


def _read_entry(directory: memoryview, cursor: int, data_start: int) -> tuple[bytes, Member, int]:
    """Read one entry, check that it is the only one its member may have, and find its end."""
    if cursor + CENTRAL.size > len(directory):
        raise ValueError("the directory is cut off")
    fields = CENTRAL.unpack_from(directory, cursor)
    crc, size, name_length = fields[6], fields[7], fields[9]
    stop = cursor + CENTRAL.size + name_length
    name = bytes(directory[cursor + CENTRAL.size : stop])
    if not name.isascii() or directory[cursor:stop] != central_header(name, crc, size, data_start):
        raise ValueError(_WRONG_HEADER)
    return name, Member(data_start + LOCAL.size + len(name), size, crc), stop


class Archive:
    """An open archive: member bytes by name, read when they are asked for.

    Attributes:
        whole: Every byte of the file.
        members: Where each member lies.
        digest: The SHA-256 that the archive declares, in hex; `check_digest` compares it.
        size_bytes: The file's size.
    """

    def __init__(self, path: StorePath, file: BinaryIO | None = None) -> None:
        """Open the file and check every header.

        Args:
            path: The archive, as messages name it.
            file: Its bytes, where they are not at `path`: a local copy of an object. Closed here.

        Raises:
            CorruptStoreError: The file is missing, cut short, or not exactly of this profile.
        """
        self.path = path
        try:
            with file or open_file(local(path)) as f:
                self.whole = FileBytes(f)
        except FileNotFoundError:
            raise self._corrupt("the file is missing", "missing-file") from None
        except OSError as e:
            raise self._corrupt(f"it cannot be read ({e.strerror})") from None
        except ValueError as e:
            raise self._corrupt(f"it cannot be read ({e})") from None
        self.size_bytes = len(self.whole)
        try:
            tail = self.whole[max(0, self.size_bytes - _END_BYTES) :]
            self.members = read_directory(memoryview(tail), self.size_bytes)
            self._check_local_headers()
        except ValueError as e:
            raise self._corrupt(str(e)) from None
        self.digest = tail[-DIGEST_CHARS:].decode("ascii", "replace")

    @property
    def names(self) -> list[str]:
        """The members, in order."""
        return list(self.members)

    def __getitem__(self, name: str) -> FileBytes:
        start, size, _ = self.members[name]
        return self.whole.part(start, size)

    def check_member(self, name: str) -> memoryview:
        """Return a member's bytes, checked by their CRC-32: arrays have finer checksums inside.

        Raises:
            ValueError: The file has become shorter, or cannot be read.
            CorruptStoreError: The bytes do not match it.
        """
        data = bytes(self[name])
        if zlib.crc32(data) != self.members[name].crc:
            raise self._corrupt(f"the bytes of {name} do not match their checksum")
        return memoryview(data)

    def check_digest(self) -> None:
        """Hash the whole file and compare the digest in it.

        Raises:
            CorruptStoreError: The bytes are not those that were committed.
        """
        actual = hashlib.sha256()
        try:
            for piece in self.whole.part(0, self.size_bytes - END.size - DIGEST_CHARS).pieces():
                actual.update(piece)
        except ValueError as e:
            raise self._corrupt(str(e)) from None
        if actual.hexdigest() != self.digest:
            raise self._corrupt(
                f"SHA-256 is {actual.hexdigest()[:12]}…, but {self.digest[:12]}… was committed: "
                "the file changed after it was written"
            )

    def _check_local_headers(self) -> None:
        """Check that each member's header is the only one that the directory allows."""
        for name, member in self.members.items():
            header = local_header(name.encode("ascii"), member.crc, member.size)
            if self.whole[member.start - len(header) : member.start] != header:
                raise ValueError(_WRONG_HEADER)

    def _corrupt(self, why: str, kind: str | None = None) -> CorruptStoreError:
        return CorruptStoreError(f"{self.path}: {why}.", path=self.path, kind=kind)


class ArchiveEnd:
    """The end of an archive: its directory, and its members read one at a time.

    Attributes:
        members: Where each member lies.
        digest: The SHA-256 that the archive declares, in hex.
        size_bytes: The size of the file.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        """Read the last bytes of a file or object, and the directory in them.

        Args:
            size: The size of the file.
            read: Reads its bytes from a start up to a stop.

        Raises:
            ValueError: It is not the end of a shard.
        """
        self.size_bytes, self._read = size, read
        self._start = max(0, size - _TAIL_BYTES)
        self._tail = read(self._start, size)
        if len(self._tail) != size - self._start:
            raise ValueError(f"{size} bytes is too short for a shard: cut off?")
        self.members = read_directory(memoryview(self._tail), size)
        if self.members and max(m.start for m in self.members.values()) < self._start:
            raise ValueError("its last member has more bytes than a group can need")
        self.digest = self._tail[-DIGEST_CHARS:].decode("ascii", "replace")

    @property
    def names(self) -> list[str]:
        """The members, in order."""
        return list(self.members)

    def check_member(self, name: str) -> memoryview:
        """Return a member's bytes, checked by their CRC-32.

        Raises:
            ValueError: The bytes do not match it.
        """
        start, size, crc = self.members[name]
        inside = start - self._start
        data = (
            self._tail[inside : inside + size] if inside >= 0 else self._read(start, start + size)
        )
        if len(data) != size or zlib.crc32(data) != crc:
            raise ValueError(f"the bytes of {name} do not match their checksum")
        return memoryview(data)
