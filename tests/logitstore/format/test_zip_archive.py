"""One reader of the directory serves the whole archive and the end of one: they agree, and refuse
whatever was not packed."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from logitstore.errors import CorruptStoreError
from logitstore.format.zip_archive import (
    DIGEST_CHARS,
    END,
    Archive,
    ArchiveEnd,
    central_header,
    local_header,
    pack,
    read_directory,
)

MEMBERS = {"a/c/0": b"some bytes" * 50, "b": b"", "zarr.json": b"{}"}


def packed(members: dict[str, bytes] = MEMBERS) -> bytes:
    return b"".join(bytes(piece) for piece in pack(members))


def from_end(data: bytes) -> ArchiveEnd:
    return ArchiveEnd(len(data), lambda start, stop: data[start:stop])


def test_the_directory_says_where_each_member_lies() -> None:
    data = packed()
    members = read_directory(memoryview(data), len(data))
    assert {n: data[m.start : m.start + m.size] for n, m in members.items()} == MEMBERS


def test_the_end_of_an_archive_and_the_whole_have_the_same_members(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed({"big": bytes(300_000)} | MEMBERS))
    whole, end = Archive(path), from_end(path.read_bytes())
    assert list(whole.members.items()) == list(end.members.items())
    assert (whole.digest, whole.size_bytes) == (end.digest, end.size_bytes)
    assert all(whole.check_member(name) == end.check_member(name) for name in whole.names)


def test_no_changed_byte_of_directory_or_end_record_moves_a_member(tmp_path: Path) -> None:
    """What the directory alone cannot know, names and checksums, the whole finds beside them."""
    data, rng, path = packed(), np.random.default_rng(0), tmp_path / "a.zip"
    start = max(start + size for start, size in places(data))
    for at in range(start, len(data) - DIGEST_CHARS):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        with pytest.raises(CorruptStoreError):
            Archive(path)
        with suppress(ValueError):
            assert places(bytes(changed)) == places(data)


def places(data: bytes) -> list[tuple[int, int]]:
    return [(m.start, m.size) for m in read_directory(memoryview(data), len(data)).values()]


def archive_of(names: list[bytes]) -> bytes:
    """An archive of empty members in any order, right in all else."""
    body = directory = b""
    for name in names:
        directory += central_header(name, 0, 0, len(body))
        body += local_header(name, 0, 0)
    count = len(names)
    end = END.pack(b"PK\5\6", 0, 0, count, count, len(directory), len(body), DIGEST_CHARS)
    return body + directory + end + b"0" * DIGEST_CHARS


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([b"b", b"a"], "not in sorted order"),
        ([b"a", b"a"], "not in sorted order"),
        ([b"\xff"], "not of the profile"),
        ([b"%05d" % i for i in range(2000)], "larger than that of a shard"),
    ],
)
@pytest.mark.parametrize("part", ["whole", "end"])
def test_both_refuse_what_pack_never_writes(
    tmp_path: Path, names: list[bytes], says: str, part: str
) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(archive_of(names))
    read: dict[str, Callable[[], object]] = {
        "whole": lambda: Archive(path),
        "end": lambda: from_end(path.read_bytes()),
    }
    with pytest.raises((CorruptStoreError, ValueError), match=says):
        read[part]()


def test_a_header_that_differs_from_the_directory_is_refused_by_the_whole(tmp_path: Path) -> None:
    data = bytearray(packed())
    data[14] ^= 1  # the first member's checksum, in front of it
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="not of the profile"):
        Archive(path)
