"""Section 3: the zip archive of one profile."""

import struct
import zlib

from tests.kit.reader_from_spec.json_text import sha256
from tests.kit.reader_from_spec.refusing import must


def read_archive(data):
    """Members by name, and the shard digest."""
    must(len(data) < 1 << 32, "a shard is below 4 GiB")
    end = len(data) - 22 - 64
    must(end >= 0, "room for an end record")
    fields = struct.unpack_from("<4s4H2IH", data, end)
    count, size, start = fields[3], fields[5], fields[6]
    must(fields == (b"PK\5\6", 0, 0, count, count, size, start, 64), "end record")
    must(start + size == end, "directory before the end record")
    must(sha256(data[:end]).encode() == data[end + 22 :], "shard digest")
    members, cursor, at, last = {}, start, 0, b""
    for _ in range(count):
        must(cursor + 46 <= end, "room for a central header")
        length = struct.unpack_from("<H", data, cursor + 28)[0]
        name = data[cursor + 46 : cursor + 46 + length]
        crc, stored = struct.unpack_from("<2I", data, cursor + 16)
        shared = (0, 0, 0, 0x0021, crc, stored, stored, length, 0)
        central = struct.pack("<4s2H", b"PK\1\2", 10, 10) + struct.pack("<4H3I2H", *shared)
        central += struct.pack("<3H2I", 0, 0, 0, 0, at) + name
        must(data[cursor : cursor + len(central)] == central, "central header")
        local = struct.pack("<4sH", b"PK\3\4", 10) + struct.pack("<4H3I2H", *shared) + name
        must(data[at : at + len(local)] == local, "local header")
        must(name > last and name.isascii(), "names ascend")
        at, last = at + len(local), name
        must(at + stored <= start, "members end before the directory")
        members[name.decode("ascii")] = data[at : at + stored]
        must(zlib.crc32(data[at : at + stored]) == crc, "CRC-32")
        at, cursor = at + stored, cursor + len(central)
    must(at == start and cursor == end, "no gaps")
    return members, data[end + 22 :].decode()
