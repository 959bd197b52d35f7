"""Stores made to harm whoever reads them. Each is refused with one error, in little memory.

An attack is a function that spoils a good store; its docstring says what it tries. Digests and
checksums are made right again wherever an attacker could (see hostile.py).
"""

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numcodecs import blosc

from logitstore.archive import pack
from logitstore.arrays import ArraySpec, array_metadata, canonical_json
from logitstore.errors import CorruptStoreError
from logitstore.lines import SCHEMA, LinesReader, encode_lines, line_digest
from logitstore.records import Segment, SequenceText
from logitstore.store import open_store
from logitstore.verify import verify_store
from tests import stores
from tests.hostile import (
    END_BYTES,
    SHARD,
    crc,
    data_member,
    edit_group,
    edit_spec,
    index_table,
    members_of,
    outcomes,
    parquet,
    put_index,
    put_members,
    put_shard,
    reseal,
)

LIMIT_BYTES = 100 * 1024 * 1024
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


# JSON.


def provenance(value: Any) -> Attack:
    return lambda store: edit_spec(store, lambda body: body.update(provenance=value))


def content(part: str, **changes: Any) -> Attack:
    return lambda store: edit_spec(store, lambda body: body["content"][part].update(changes))


def boundaries(*values: Any) -> Attack:
    return lambda store: edit_spec(store, lambda body: body["plan"].update(boundaries=values))


for _name, _sentence, _attack in (
    ("spec_of_many_lists", "8 MB of `[],[],…`: 21 times that once parsed.",
     provenance({"x": [[]] * 2_600_000})),
    ("spec_of_many_strings", "Millions of short strings.", provenance({"x": ["ab"] * 1_500_000})),
    ("spec_with_a_chunk_of_terabytes", "Chunks of 2^40 records: allocated before they are read.",
     content("codec", records_per_chunk=2**40)),
    ("spec_with_a_chunk_of_nothing", "Chunks of 0 entries, to divide by.",
     content("codec", entries_per_chunk=0)),
    ("spec_with_a_negative_chunk", "Chunks of -1 entries.", content("codec", entries_per_chunk=-1)),
    ("spec_with_another_codec", "A codec that this version does not know.",
     content("codec", name="pickle")),
    ("spec_with_a_million_temperatures", "`lognorm` with a million columns.",
     content("capture", temperatures=[2.0] * 1_000_000)),
    ("spec_with_a_text_for_a_number", "top_k is a string.", content("capture", top_k="6")),
    ("spec_with_a_truth_for_a_number", "top_k is true.", content("capture", top_k=True)),
    ("spec_with_a_field_more", "A field that only some readers would obey.",
     content("capture", exec="rm -rf ~")),
    ("spec_that_lacks_what_no_one_can", "A field is said to be missing that always is there.",
     content("capture", missing=["token_ids"])),
    ("spec_that_lacks_nothing", "An empty list: another way to write the same store.",
     content("capture", missing=[])),
    ("spec_that_lacks_twice", "The same, twice.", content("capture", missing=["entropy"] * 2)),
    ("spec_that_lacks_a_list", "A list in the list, which cannot be looked up in a set.",
     content("capture", missing=[["entropy"]])),
    ("spec_with_a_path_upwards", "A tokenizer file at ../../../dev/zero: hashing never ends.",
     content("tokenizer", files={"../../../../../../../../dev/zero": "0" * 64})),
    ("spec_with_an_absolute_path", "A tokenizer file at /dev/zero.",
     content("tokenizer", files={"/dev/zero": "0" * 64})),
    ("plan_that_runs_backwards", "Boundaries that fall.", boundaries(0, 7, 3, 12)),
    ("plan_below_zero", "Boundaries below zero.", boundaries(-5, 3, 7, 12)),
    ("plan_of_nothing", "No boundaries at all.", boundaries()),
    ("plan_of_fractions", "Boundaries that are no whole numbers.", boundaries(0, 3.5, 12)),
):  # fmt: skip
    _attack.__doc__ = _sentence
    ATTACKS[_name] = _attack


@attack
def spec_nested_deeply(store: Path) -> None:
    """100,000 brackets: a parser that recurses dies of it."""
    raw = (store / "store.json").read_bytes()
    deep = b"[" * 9_999 + b"]" * 9_999
    at = raw.index(b'"provenance":') + len(b'"provenance":')
    (store / "store.json").write_bytes(raw[:at] + deep + b',"version":1}\n')


@attack
def spec_of_a_gigabyte(store: Path) -> None:
    """A sparse file of 1 GiB."""
    os.truncate(store / "store.json", 1 << 30)


@attack
def spec_with_a_number_of_many_digits(store: Path) -> None:
    """A number of a million digits: quadratic time to read."""
    raw = (store / "store.json").read_bytes()
    changed = raw.replace(b'"tokens_per_batch":64', b'"tokens_per_batch":' + b"7" * 1_000_000)
    assert changed != raw
    (store / "store.json").write_bytes(changed)


@attack
def spec_with_not_a_number(store: Path) -> None:
    """NaN, which compares with nothing, as max_tail."""
    raw = (store / "store.json").read_bytes()
    (store / "store.json").write_bytes(raw.replace(b'"max_tail":null', b'"max_tail":NaN'))


@attack
def spec_with_a_field_twice(store: Path) -> None:
    """top_k twice, of which readers choose the first or the last."""
    raw = (store / "store.json").read_bytes()
    (store / "store.json").write_bytes(raw.replace(b'"top_k":6', b'"top_k":5,"top_k":6'))
    reseal(store)


@attack
def spec_that_is_a_pipe(store: Path) -> None:
    """A pipe without a writer: opening it waits for ever."""
    (store / "store.json").unlink()
    os.mkfifo(store / "store.json")


@attack
def shard_that_is_a_pipe(store: Path) -> None:
    """The same for a shard."""
    (store / SHARD).unlink()
    os.mkfifo(store / SHARD)


@attack
def shard_that_is_a_device(store: Path) -> None:
    """A link to /dev/zero."""
    (store / SHARD).unlink()
    (store / SHARD).symlink_to("/dev/zero")


@attack
def shard_that_is_a_folder(store: Path) -> None:
    """A folder with a shard's name."""
    (store / SHARD).unlink()
    (store / SHARD).mkdir()


@attack
def group_nested_deeply(store: Path) -> None:
    """The deep JSON again, inside a shard."""
    put_members(store, members_of(store) | {"zarr.json": b'{"attributes":' + b"[" * 30_000})


@attack
def group_with_a_field_more(store: Path) -> None:
    """A field that only some readers would obey."""
    edit_group(store, lambda about: about.update(more=1))


@attack
def group_with_infinite_fidelity(store: Path) -> None:
    """A bound of 1e308: sums of it are infinite."""
    edit_group(store, lambda about: about["fidelity"].update(l1_max=1e308))


@attack
def seal_nested_deeply(store: Path) -> None:
    """The deep JSON again, as DONE."""
    (store / "DONE").write_bytes(b'{"sha256":' + b"[" * 100_000)


@attack
def seal_of_a_gigabyte(store: Path) -> None:
    """A sparse DONE of 1 GiB."""
    os.truncate(store / "DONE", 1 << 30)


# Parquet.


def put_lines(store: Path, data: bytes) -> None:
    put_members(store, members_of(store) | {"rows.parquet": data})


def lines_table(count: int = 4, **columns: Any) -> pa.Table:
    lines = [SequenceText(3 + i, 0, "ok", (Segment("x", True),)) for i in range(count)]
    whole: dict[str, Any] = {
        "row": [line.row for line in lines],
        "part": [0] * count,
        "status": ["ok"] * count,
        "supervised_start": [0] * count,
        "segments": [[s._asdict() for s in line.segments] for line in lines],
        "messages": [None] * count,
        "digest": [line_digest(line) for line in lines],
    }
    return pa.table(whole | columns, schema=SCHEMA)


def segments(text: pa.Array, lists: int = 4) -> pa.Array:
    """`text` divided among so many lines."""
    n = len(text)
    struct_ = pa.StructArray.from_arrays(
        [pa.nulls(n, pa.string()), text, pa.repeat(pa.scalar(value=True), n)],
        ["role", "text", "supervised"],
    )
    offsets = pa.array(np.linspace(0, n, lists + 1).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, struct_)


def with_segments(column: pa.Array) -> pa.Table:
    table = lines_table()
    return table.set_column(4, "segments", column)


@attack
def rows_that_decompress_without_end(store: Path) -> None:
    """One text of 150 MB of the same letter, in 10 KB."""
    text = pa.array(["a" * 150_000_000, "", "", ""])
    put_lines(store, parquet(with_segments(segments(text)), use_dictionary=False))


@attack
def rows_that_repeat_one_long_text(store: Path) -> None:
    """A dictionary of one text of 1 MB, referred to 6,400 times: 6 GB in 2 KB."""
    indices = pa.array(np.zeros(6400, np.int32))
    text = pa.DictionaryArray.from_arrays(indices, pa.array(["b" * 1_000_000]))
    put_lines(store, parquet(with_segments(segments(text)), store_schema=False))


@attack
def rows_of_millions_of_empty_segments(store: Path) -> None:
    """2 million segments of no text: a few bytes as run lengths, 1 GB as objects."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000_000, np.int32)), pa.array([""]))
    put_lines(store, parquet(with_segments(segments(text)), store_schema=False))


@attack
def rows_of_a_huge_count(store: Path) -> None:
    """Ten million lines where the shard has four."""
    n = 10_000_000
    columns = {f.name: pa.nulls(n, f.type) for f in SCHEMA}
    put_lines(store, parquet(pa.table(columns, schema=SCHEMA), row_group_size=1 << 24))


@attack
def rows_of_another_schema(store: Path) -> None:
    """A column of numbers where text is expected."""
    table = lines_table().set_column(2, "status", pa.array([1, 2, 3, 4]))
    put_lines(store, parquet(table))


@attack
def rows_without_a_column(store: Path) -> None:
    """No digests."""
    put_lines(store, parquet(lines_table().drop_columns(["digest"])))


@attack
def rows_of_another_compression(store: Path) -> None:
    """Brotli, which reaches ratios of a million."""
    put_lines(store, parquet(lines_table(), compression="brotli"))


@attack
def rows_with_pages_of_version_2(store: Path) -> None:
    """Data pages of version 2, whose levels are outside the compression."""
    put_lines(store, parquet(lines_table(), data_page_version="2.0"))


@attack
def rows_with_nothing_where_values_must_be(store: Path) -> None:
    """Lines without a row, a status or segments."""
    none = pa.nulls(4, SCHEMA.field("segments").type)
    put_lines(store, parquet(with_segments(none)))


@attack
def rows_of_another_shard(store: Path) -> None:
    """Lines of rows 0 to 3 in the shard of rows 3 to 6."""
    lines = [SequenceText(i, 0, "ok", (Segment("x", True),)) for i in range(4)]
    put_lines(store, bytes(memoryview(encode_lines(lines))))


@attack
def rows_with_a_lying_footer_length(store: Path) -> None:
    """A footer of 4 GiB."""
    data = bytearray(members_of(store)["rows.parquet"])
    data[-8:-4] = b"\xff\xff\xff\xff"
    put_lines(store, bytes(data))


@attack
def rows_with_a_footer_of_megabytes(store: Path) -> None:
    """3 MB of key-value metadata in the footer."""
    table = lines_table().replace_schema_metadata({"x": "y" * 3_000_000})
    put_lines(store, parquet(table))


@attack
def rows_that_are_not_parquet(store: Path) -> None:
    """Something else under the name."""
    put_lines(store, b"PAR1" + bytes(100) + b"PAR1")


@attack
def index_of_a_huge_count(store: Path) -> None:
    """Ten million lines for three shards."""
    table = index_table(store)
    many = pa.table({n: pa.repeat(table[n][0], 10_000_000) for n in table.column_names})
    put_index(store, parquet(many.cast(table.schema), row_group_size=1 << 24))


@attack
def index_that_decompresses_without_end(store: Path) -> None:
    """A status text of 100 MB of blanks."""
    statuses = [" " * 100_000_000 + "{}", "{}", "{}"]
    put_index(store, parquet(index_table(store, statuses=statuses), use_dictionary=False))


@attack
def index_of_another_schema(store: Path) -> None:
    """Sizes as text."""
    table = index_table(store)
    put_index(store, parquet(table.set_column(3, "sequences", pa.array(["1", "2", "3"]))))


@attack
def index_with_nothing_where_a_number_must_be(store: Path) -> None:
    """A bound that is null."""
    put_index(store, parquet(index_table(store, l1_max=[None, 0.1, 0.1])))


@attack
def index_with_negative_counts(store: Path) -> None:
    """A shard of -4 lines, so that sequence numbers point elsewhere."""
    put_index(store, parquet(index_table(store, sequences=[3, -4, 5])))


@attack
def index_with_more_lines_than_the_shard(store: Path) -> None:
    """A shard of 10^9 lines by the index."""
    put_index(store, parquet(index_table(store, sequences=[3, 10**9, 5])))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every attack once, in one victim."""
    folder = tmp_path_factory.mktemp("attacks")
    whole = folder / "whole"
    stores.write(whole, stores.spec(chunks=(4, 32768)))
    for name, spoil in ATTACKS.items():
        spoil(Path(shutil.copytree(whole, folder / name)))
    try:
        return outcomes([whole, whole, *(folder / name for name in ATTACKS)])
    finally:
        shutil.rmtree(folder)


def test_the_victim_reads_an_honest_store(results: dict[str, dict[str, Any]]) -> None:
    assert results["whole"]["read"]["error"] is None, results["whole"]
    assert results["whole"]["verify"]["error"] is None


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_is_refused_in_little_memory(
    results: dict[str, dict[str, Any]], name: str
) -> None:
    read, verify = results[name]["read"], results[name]["verify"]
    assert "LogitStoreError" in read["kinds"], f"reading: {read}"
    assert verify["error"] in ("ValueError", "CorruptStoreError", "NotAStoreError"), verify
    for use in (read, verify):
        assert use["peak_bytes"] < LIMIT_BYTES, f"{use['peak_bytes']:,} bytes over idle: {use}"
    assert "Traceback" not in read["says"]


def test_no_flipped_bit_of_the_text_ends_the_process() -> None:
    """Found by fuzzing: pyarrow 26 aborts when it is asked for a column whose level histogram is
    not of the right length, so its column metadata is never asked for."""
    lines = [SequenceText(i, 0, "ok", (Segment("some text", True),)) for i in range(4)]
    data = bytes(memoryview(encode_lines(lines)))
    child = os.fork()
    if child == 0:
        rng = np.random.default_rng(0)
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 1 << int(rng.integers(8))
            with suppress(ValueError):
                reader = LinesReader(memoryview(changed), 4)
                read = [reader[i] for i in range(4)]
                if read != lines:
                    os._exit(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_chunks_whose_sizes_wrap_around_are_refused_when_the_array_is_opened(
    tmp_path: Path,
) -> None:
    stores.write(tmp_path / "s", stores.spec(chunks=(4, 512)))
    edit_index(tmp_path / "s", lambda p: p[0].__setitem__(1, 2**64 - 40))
    with pytest.raises(CorruptStoreError, match="token_ids: a chunk reaches outside the member"):
        open_store(tmp_path / "s").text(3)


def test_a_device_in_the_place_of_a_file_is_not_read(tmp_path: Path) -> None:
    """A tokenizer that is a link to /dev/zero would be hashed for ever."""
    stores.write(tmp_path / "s")
    (tmp_path / "s" / "tokenizer" / "tokenizer.json").unlink()
    (tmp_path / "s" / "tokenizer" / "tokenizer.json").symlink_to("/dev/null")
    (damage,) = verify_store(tmp_path / "s").damaged
    assert damage.file == "tokenizer/tokenizer.json"
    assert "not an ordinary file" in damage.reason


@pytest.mark.parametrize(
    "name",
    [
        "array_of_gigabytes_of_zeros",
        "rows_that_decompress_without_end",
        "rows_that_repeat_one_long_text",
        "index_that_decompresses_without_end",
    ],
)
def test_a_bomb_is_refused_for_being_one(results: dict[str, dict[str, Any]], name: str) -> None:
    """Before it is decoded, not for what is found in it afterwards."""
    assert "declare that they become" in results[name]["read"]["says"]
