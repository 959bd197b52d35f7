"""Each limit of FORMAT.md holds in both readers: one value just within it, one just beyond."""

import struct
from pathlib import Path

import pytest

from logitstore.errors import LogitStoreError
from logitstore.format.zip_archive import CENTRAL, END, central_header, read_directory
from tests.kit.page_rules.limits import LIMITS
from tests.kit.page_rules.tools import copy_of, read_by_them, read_by_us
from tests.kit.reader_from_spec import RefusedError, read_archive
from tests.kit.reader_from_spec.json_text import sha256


@pytest.mark.parametrize("name", LIMITS)
def test_a_store_within_the_limit_is_read(tmp_path: Path, name: str) -> None:
    store = copy_of(LIMITS[name].golden, tmp_path / "s")
    LIMITS[name].within(store)
    read_by_us(store)
    read_by_them(store)


@pytest.mark.parametrize("name", LIMITS)
def test_a_store_beyond_the_limit_is_rejected(tmp_path: Path, name: str) -> None:
    store, limit = copy_of(LIMITS[name].golden, tmp_path / "s"), LIMITS[name]
    limit.beyond(store)
    with pytest.raises(LogitStoreError) as ours:
        read_by_us(store)
    assert limit.ours in str(ours.value)
    with pytest.raises(RefusedError) as theirs:
        read_by_them(store)
    assert limit.theirs in str(theirs.value)


@pytest.mark.parametrize(("beyond", "is_read"), [(-1, True), (0, False)])
def test_a_shard_is_below_4_gib(beyond: int, is_read: bool) -> None:
    """By its directory alone: a file of 4 GiB is too much for a test."""
    size, name = (1 << 32) + beyond, b"zarr.json"
    directory = CENTRAL.size + len(name)
    first = size - directory - END.size - 64
    end = END.pack(b"PK\5\6", 0, 0, 1, 1, directory, first, 64) + b"0" * 64
    tail = central_header(name, 0, first - 30 - len(name), 0) + end
    if is_read:
        assert read_directory(memoryview(tail), size)["zarr.json"].start == 30 + len(name)
    else:
        with pytest.raises(ValueError, match="below 4 GiB"):
            read_directory(memoryview(tail), size)


def test_the_second_reader_asks_for_less_than_4_gib_too() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(RefusedError, match="below 4 GiB"):
        read_archive(Long())
    empty = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 64)
    with pytest.raises(RefusedError, match="shard digest"):
        read_archive(empty + sha256(b"x").encode())
