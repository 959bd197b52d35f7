"""Attacks on a shard: its archive, its arrays. Each spoils a good store in place."""

import json
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc

from logitstore.format.canonical_json import canonical_json
from logitstore.format.zarr_arrays import ArraySpec, array_metadata
from logitstore.format.zip_archive import pack
from tests.kit.hostile import (
    END_BYTES,
    SHARD,
    crc,
    data_member,
    edit_group,
    edit_spec,
    members_of,
    put_members,
    put_shard,
)

Attack = Callable[[Path], None]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    assert function.__doc__, "an attack says what it tries"
    ATTACKS[function.__name__] = function
    return function


# The archive.


def by_zipfile(store: Path, **options: Any) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", **options) as z:
        for name, data in sorted(members_of(store).items()):
            z.writestr(name, data)
        z.comment = b"0" * 64
    put_shard(store, out.getvalue())


@attack
def zip_compressed(store: Path) -> None:
    """Members compressed by deflate: 1 to 1,000 bombs, and bytes the chunk index cannot reach."""
    by_zipfile(store, compression=zipfile.ZIP_DEFLATED)


@attack
def zip_of_another_writer(store: Path) -> None:
    """A valid zip with timestamps and attributes: the same members as other bytes."""
    by_zipfile(store)


def shard_bytes(store: Path) -> bytearray:
    return bytearray((store / SHARD).read_bytes())


def directory(data: bytes) -> int:
    return int(struct.unpack_from("<I", data, len(data) - END_BYTES + 16)[0])


@attack
def zip_with_a_prefix(store: Path) -> None:
    """A program in front of the archive: zip readers that search from the end do not mind."""
    put_shard(store, b"#!/bin/sh\nrm -rf ~\n" + shard_bytes(store))


@attack
def zip_with_a_suffix(store: Path) -> None:
    """Bytes behind the end record, where another reader may look for its own."""
    put_shard(store, shard_bytes(store) + b"PK\5\6" + bytes(82))


@attack
def zip_with_a_gap(store: Path) -> None:
    """Bytes between members and directory that no entry names."""
    data = shard_bytes(store)
    at = directory(data)
    data[at:at] = b"hidden"
    struct.pack_into("<I", data, len(data) - END_BYTES + 16, at + 6)
    put_shard(store, bytes(data))


@attack
def zip_with_overlapping_entries(store: Path) -> None:
    """Two entries of the same bytes: the quine and 42.zip family."""
    data = shard_bytes(store)
    second = data.index(b"PK\1\2", directory(data) + 4)
    struct.pack_into("<I", data, second + 42, 0)
    put_shard(store, bytes(data))


@attack
def zip_whose_headers_disagree(store: Path) -> None:
    """A local header with another name than the directory's: readers of either differ."""
    data = shard_bytes(store)
    data[30] ^= 1
    put_shard(store, bytes(data))


@attack
def zip_with_a_lying_size(store: Path) -> None:
    """An entry of 4 GiB in both of its headers."""
    data = shard_bytes(store)
    at = directory(data)
    for field in (18, 22):
        struct.pack_into("<I", data, field, 0xFFFFFFF0)
        struct.pack_into("<I", data, at + field + 2, 0xFFFFFFF0)
    put_shard(store, bytes(data))


@attack
def zip_with_a_descriptor_flag(store: Path) -> None:
    """Sizes in a data descriptor behind the member, so that the header may say anything."""
    data = shard_bytes(store)
    data[6] |= 8
    data[directory(data) + 8] |= 8
    put_shard(store, bytes(data))


@attack
def zip_with_an_extra_field(store: Path) -> None:
    """An extra field in the directory (zip64, Unicode names): a second truth beside the first."""
    data = shard_bytes(store)
    struct.pack_into("<H", data, directory(data) + 30, 4)
    put_shard(store, bytes(data))


@attack
def zip_with_a_wrong_count(store: Path) -> None:
    """An end record of 65,535 entries."""
    data = shard_bytes(store)
    struct.pack_into("<HH", data, len(data) - END_BYTES + 8, 65535, 65535)
    put_shard(store, bytes(data))


@attack
def zip_on_many_disks(store: Path) -> None:
    """An end record of a multi-volume archive."""
    data = shard_bytes(store)
    struct.pack_into("<H", data, len(data) - END_BYTES + 4, 1)
    put_shard(store, bytes(data))


@attack
def zip_with_a_directory_outside(store: Path) -> None:
    """A directory that begins behind the end of the file (a negative offset, read as signed)."""
    data = shard_bytes(store)
    struct.pack_into("<I", data, len(data) - END_BYTES + 16, 0xFFFFFFFF)
    put_shard(store, bytes(data))


@attack
def zip_with_a_name_twice(store: Path) -> None:
    """Two entries of one name, of which readers choose the first or the last."""
    twice = {f"zarr.json{i}": d for i, d in enumerate([members_of(store)["zarr.json"]] * 2)}
    data = b"".join(map(bytes, pack(members_of(store) | twice)))
    put_shard(store, data.replace(b"zarr.json1", b"zarr.json0"))


@attack
def zip_with_a_path_upwards(store: Path) -> None:
    """`../../evil`: who extracts it writes outside."""
    put_members(store, members_of(store) | {"../../evil": b"x"})


@attack
def zip_with_an_absolute_path(store: Path) -> None:
    """`/etc/evil`."""
    put_members(store, members_of(store) | {"/etc/evil": b"x"})


@attack
def zip_with_a_member_more(store: Path) -> None:
    """A member that the format does not know: a place to hide things, or a second rows.parquet."""
    put_members(store, members_of(store) | {"readme": b"x"})


@attack
def zip_with_a_member_less(store: Path) -> None:
    """An array without data, which plain zarr reads as zeros."""
    members = members_of(store)
    del members["token_ids/c/0"]
    put_members(store, members)


# Arrays.


def edit_chunk(store: Path, change: Callable[[bytearray], None], name: str = "token_ids") -> None:
    members = members_of(store)
    member = members[f"{name}/c/0"]
    count = next(
        c for c in range(1, 99) if sum(index_of(member, c)[-1]) == len(member) - 16 * c - 4
    )
    chunks = [bytearray(member[o : o + n - 4]) for o, n in index_of(member, count)]
    change(chunks[0])
    put_members(store, members | {f"{name}/c/0": data_member([bytes(c) for c in chunks])})


def index_of(member: bytes, count: int) -> list[tuple[int, int]]:
    flat = struct.unpack(f"<{2 * count}Q", member[-4 - 16 * count : -4])
    return list(zip(flat[::2], flat[1::2], strict=True))


@attack
def chunk_that_declares_gigabytes(store: Path) -> None:
    """A blosc header of 2 GiB in front of a few bytes."""
    edit_chunk(store, lambda c: c.__setitem__(slice(4, 8), struct.pack("<I", 2**31 - 1)))


@attack
def chunk_with_a_huge_block(store: Path) -> None:
    """A blosc block size of 2 GiB: scratch memory for each thread."""
    edit_chunk(store, lambda c: c.__setitem__(slice(8, 12), struct.pack("<I", 2**31 - 1)))


@attack
def chunk_of_another_codec(store: Path) -> None:
    """A blosc buffer of lz4 behind byte shuffle, which the array's metadata does not say."""

    def lz4(chunk: bytearray) -> None:
        chunk[:] = blosc.compress(blosc.decompress(bytes(chunk)), b"lz4", 5, 1, 0)

    edit_chunk(store, lz4)


@attack
def chunk_of_another_type_size(store: Path) -> None:
    """A bitshuffle over elements of 255 bytes."""
    edit_chunk(store, lambda c: c.__setitem__(3, 255))


@attack
def chunk_that_is_too_short(store: Path) -> None:
    """A blosc buffer that ends within its own header."""
    edit_chunk(store, lambda c: c.__delitem__(slice(9, None)))


def edit_index(store: Path, change: Callable[[list[list[int]]], None]) -> None:
    members = members_of(store)
    member = members["token_ids/c/0"]
    count = next(
        c for c in range(2, 999) if sum(index_of(member, c)[-1]) == len(member) - 16 * c - 4
    )
    places = [list(p) for p in index_of(member, count)]
    change(places)
    index = b"".join(struct.pack("<QQ", *p) for p in places)
    body = member[: len(member) - len(index) - 4]
    put_members(store, members | {"token_ids/c/0": body + index + crc(index)})


@attack
def index_with_overlapping_chunks(store: Path) -> None:
    """Every chunk is the first: one kilobyte of data for a gigabyte of array."""
    edit_index(store, lambda p: p.__setitem__(1, p[0]))


@attack
def index_with_a_missing_chunk(store: Path) -> None:
    """A chunk of offset and size 2^64 - 1, zarr's way to say that it is all zeros."""
    edit_index(store, lambda p: p.__setitem__(0, [2**64 - 1] * 2))


@attack
def index_with_a_negative_offset(store: Path) -> None:
    """A size of 2^64 - 40 that wraps around, so that offsets seem to add up."""
    edit_index(store, lambda p: (p[0].__setitem__(1, 2**64 - 40), p[1].__setitem__(0, 2**64 - 40)))


@attack
def metadata_with_another_codec_chain(store: Path) -> None:
    """gzip instead of blosc, and no checksum: for readers that obey the metadata."""
    edit_metadata(store, '"name":"blosc"', '"name":"gzip"')


@attack
def metadata_with_another_fill_value(store: Path) -> None:
    """A fill value of 7: what a missing chunk would read as."""
    edit_metadata(store, '"fill_value":0', '"fill_value":7')


@attack
def metadata_with_an_absurd_shape(store: Path) -> None:
    """An array of 10^18 elements."""
    edit_metadata(store, '"shape":[', '"shape":[1000000000000000000,')


def edit_metadata(store: Path, old: str, new: str) -> None:
    members = members_of(store)
    changed = members["token_ids/zarr.json"].decode().replace(old, new, 1).encode()
    assert changed != members["token_ids/zarr.json"]
    put_members(store, members | {"token_ids/zarr.json": changed})


def resized(**size: Any) -> Attack:
    return lambda store: edit_group(store, lambda about: about["size"].update(size))


for _name, _sentence, _attack in (
    ("size_of_exabytes", "A shard of 2^62 records.", resized(records=2**62)),
    ("size_below_zero", "A shard of -1 records.", resized(records=-1)),
    ("size_of_text", "A size that is a string.", resized(entries="9" * 1000)),
    ("size_of_a_fraction", "A size of 1.5.", resized(entries=1.5)),
    ("size_too_many_sequences", "A hundred million lines in four.", resized(sequences=10**8)),
):
    _attack.__doc__ = _sentence
    ATTACKS[_name] = _attack


def zeros(spec: ArraySpec) -> bytes:
    chunk = np.zeros(spec.chunk_shape, spec.dtype)
    return data_member([blosc.compress(chunk, b"zstd", 5, blosc.BITSHUFFLE, 0)] * spec.chunk_count)


@attack
def array_of_gigabytes_of_zeros(store: Path) -> None:
    """A few KB, honest in form: one sequence of every record there is, 65,535 zeros in each."""
    edit_spec(store, lambda body: body["content"]["capture"].update(top_k=65535))
    members = members_of(store)
    group = json.loads(members["zarr.json"])
    size = group["attributes"]["logitstore"]["size"]
    entries = size["records"] * 65535
    size["entries"] = entries
    for name, dtype in (("entry_logprobs", "<u2"), ("entry_ids", "<u4")):
        spec = ArraySpec(name, np.dtype(dtype), (entries,), chunk_length(store))
        members[spec.metadata_member], members[spec.data_member] = array_metadata(spec), zeros(spec)
    records = size["records"]
    counts = np.full(chunk_records(store), 65535, "<u2")
    spec = ArraySpec("entry_count", np.dtype("<u2"), (records,), chunk_records(store))
    piece = blosc.compress(counts, b"zstd", 5, blosc.BITSHUFFLE, 0)
    members[spec.data_member] = data_member([piece] * spec.chunk_count)
    for name, total in (("sequence_records", records), ("sequence_entries", entries)):
        offsets = np.zeros(1024, "<u8")
        offsets[1 : size["sequences"] + 1] = total
        member = data_member([blosc.compress(offsets, b"zstd", 5, blosc.BITSHUFFLE, 0)])
        members[f"{name}/c/0"] = member
    members["zarr.json"] = canonical_json(group)
    put_members(store, members)


def chunk_length(store: Path) -> int:
    return int(
        json.loads((store / "store.json").read_bytes())["content"]["codec"]["entries_per_chunk"]
    )


def chunk_records(store: Path) -> int:
    return int(
        json.loads((store / "store.json").read_bytes())["content"]["codec"]["records_per_chunk"]
    )


@attack
def offsets_that_run_backwards(store: Path) -> None:
    """Sequence offsets that fall, so that a range has a negative length."""

    def fall(chunk: bytearray) -> None:
        values = np.frombuffer(blosc.decompress(bytes(chunk)), "<u8").copy()
        values[1], values[2] = values[2] + 1, values[1]
        chunk[:] = blosc.compress(values, b"zstd", 5, blosc.BITSHUFFLE, 0)

    edit_chunk(store, fall, "sequence_records")


@attack
def offsets_beyond_the_array(store: Path) -> None:
    """A sequence that ends at record 2^63."""

    def far(chunk: bytearray) -> None:
        values = np.frombuffer(blosc.decompress(bytes(chunk)), "<u8").copy()
        values[1] = 2**63
        chunk[:] = blosc.compress(values, b"zstd", 5, blosc.BITSHUFFLE, 0)

    edit_chunk(store, far, "sequence_entries")


@attack
def counts_that_do_not_add_up(store: Path) -> None:
    """Records that claim 65,535 entries each, more than the sequence has."""

    def many(chunk: bytearray) -> None:
        values = np.full(len(blosc.decompress(bytes(chunk))) // 2, 65535, "<u2")
        chunk[:] = blosc.compress(values, b"zstd", 5, blosc.BITSHUFFLE, 0)

    edit_chunk(store, many, "entry_count")
