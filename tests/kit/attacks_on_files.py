"""Attacks on a store's JSON, its Parquet files, and what lies in the place of files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from logitstore.format.rows_parquet import SCHEMA, encode_lines, line_digest
from logitstore.records import Segment, SequenceText
from tests.kit.attacks_on_shards import ATTACKS, Attack, attack
from tests.kit.hostile import (
    SHARD,
    edit_group,
    edit_spec,
    index_table,
    members_of,
    parquet,
    put_index,
    put_members,
    reseal,
)

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


def with_int96(data: bytes, *, in_schema: bool = False) -> bytes:
    """A Parquet file whose first column of 64-bit integers is said to be one of INT96.

    pyarrow goes by the schema alone, other readers by what the column says of itself.
    """
    size = int.from_bytes(data[-8:-4], "little")
    body, footer, end = data[: -8 - size], data[-8 - size : -8], data[-8:]
    of_schema, of_column = b"\x15\x04\x25", b"\x1c\x15\x04"  # Thrift: field 1 is 2, INT64
    wanted = of_schema if in_schema else of_column
    assert wanted in footer
    return body + footer.replace(wanted, wanted.replace(b"\x04", b"\x06"), 1) + end


@attack
def rows_of_int96(store: Path) -> None:
    """The rows' numbers are INT96, by their own words; by the schema they are not."""
    put_lines(store, with_int96(members_of(store)["rows.parquet"]))


@attack
def rows_of_int96_by_the_schema(store: Path) -> None:
    """The other way round."""
    put_lines(store, with_int96(members_of(store)["rows.parquet"], in_schema=True))


@attack
def index_of_int96(store: Path) -> None:
    """The same of the index."""
    put_index(store, with_int96((store / "index.parquet").read_bytes()))


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
    """Two million lines for three shards."""
    table = index_table(store)
    many = pa.table({n: pa.repeat(table[n][0], 2_000_000) for n in table.column_names})
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
