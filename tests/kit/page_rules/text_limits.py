"""The limits of FORMAT.md on `rows.parquet` and the index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.format.parquet_limits import column_chunks, columns_cost
from logitstore.records import Segment, SequenceText
from tests.kit.hostile import index_table, parquet, put_index
from tests.kit.page_rules.tools import (
    Change,
    Limit,
    lines_of,
    lines_table,
    members_of,
    put_members,
)
from tests.kit.reader_from_spec.thrift import read_struct

MIB = 1 << 20


def written(encode: Callable[[list[SequenceText]], bytes]) -> Change:
    def change(store: Path) -> None:
        data = encode(lines_of(store))
        put_members(store, members_of(store) | {"rows.parquet": data})

    return change


def with_text(lines: list[SequenceText], length: int) -> list[SequenceText]:
    """The first line has one segment of so many letters; none is supervised."""
    return [lines[0]._replace(segments=(Segment("a" * length, False),)), *lines[1:]]


def pages_of_size(size: int) -> Change:
    """A row group whose pages have so many bytes without compression."""

    def encode(lines: list[SequenceText]) -> bytes:
        def encoded(length: int) -> bytes:
            return parquet(lines_table(with_text(lines, length)), use_dictionary=False)

        length = size - decoded(encoded(size))  # all but the text, with a minus
        data = encoded(size + length)
        assert decoded(data) == size
        return data

    return written(encode)


def decoded(data: bytes) -> int:
    (columns,) = column_chunks(data)
    return columns_cost(data, columns).decoded


def strings_of_size(size: int) -> Change:
    """Strings of so many bytes, the longest of which is in the file once and used three times."""

    def encode(lines: list[SequenceText]) -> bytes:
        lines = [line._replace(segments=(), status="") for line in lines]
        rest = size - 16 * len(lines)
        each, more = divmod(rest, len(lines))
        texts = [Segment("a" * each, False)]
        lines = [line._replace(segments=tuple(texts)) for line in lines]
        lines[0] = lines[0]._replace(status="b" * more)
        return parquet(lines_table(lines))

    return written(encode)


def segments(count: int) -> Change:
    """A line of so many segments without text: 65,536 of them take a few kilobytes."""

    def encode(lines: list[SequenceText]) -> bytes:
        many = (Segment("", False),) * (count - sum(max(len(x.segments), 1) for x in lines[1:]))
        return parquet(lines_table([lines[0]._replace(segments=many), *lines[1:]]))

    return written(encode)


def footer_of_size(size: int) -> Change:
    def encode(lines: list[SequenceText]) -> bytes:
        table = lines_table(lines)
        length = size - footer(with_pairs(table, {"x": ""}))
        for _ in range(5):  # a length takes one byte or more
            length += size - footer(with_pairs(table, {"x": "y" * length}))
        data = with_pairs(table, {"x": "y" * length})
        assert footer(data) == size
        return data

    return written(encode)


def with_pairs(table: pa.Table, pairs: dict[str, str]) -> bytes:
    """A file with pairs of key and value in its footer."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", write_page_checksum=True, write_statistics=False
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(pairs)
    return bytes(memoryview(sink.getvalue()))


def footer(data: bytes) -> int:
    return int.from_bytes(data[-8:-4], "little")


def pairs(count: int) -> Change:
    """So many pairs, that of the schema among them."""
    named = {str(i): "" for i in range(count - 1)}
    return written(lambda lines: with_pairs(lines_table(lines), named))


def pairs_of_index(count: int) -> Change:
    named = {str(i): "" for i in range(count - 1)}
    return lambda store: put_index(store, with_pairs(index_table(store), named))


def page_header_of(size: int) -> Change:
    """Statistics, the least and the greatest status, make the header of a page so long."""

    def encode(lines: list[SequenceText]) -> bytes:
        def encoded(least: int, greatest: int) -> bytes:
            statuses = ["s" * least, *(["t" * greatest] * (len(lines) - 1))]
            many = [x._replace(status=s) for x, s in zip(lines, statuses, strict=True)]
            plain = {"use_dictionary": False, "compression": "none"}
            return parquet(lines_table(many), write_statistics=["status"], **plain)

        found = (encoded(least, least + more) for least in range(95, 115) for more in (0, 1))
        return next(data for data in found if header_of_status(data) == size)

    return written(encode)


def header_of_status(data: bytes) -> int:
    """Bytes of a column of one page, less those of the page."""
    (columns,) = column_chunks(data)
    status = columns[2]
    return status.stored - columns_decoded(data, status)


def columns_decoded(data: bytes, column: Any) -> int:
    fields, _ = read_struct(data[column.start : column.start + column.stored])
    return int(fields[2])


def statuses_of_size(size: int) -> Change:
    """An index of three shards whose strings have so many bytes, most of them one text."""

    def change(store: Path) -> None:
        rest, more = divmod(size - 3 * 64, 3)
        text_ = json.dumps({"x" * (rest - len('{"": 0}')): 0})
        longer = json.dumps({"x" * (rest + more - len('{"": 0}')): 0})
        table = index_table(store, statuses=[text_, text_, longer])
        put_index(store, parquet(table, row_group_size=1 << 20))

    return change


TEXT_LIMITS: dict[str, Limit] = {
    "bytes of a row group": Limit(
        pages_of_size(2 * MIB),
        pages_of_size(2 * MIB + 1),
        "they become 2,097,153",
        "row group is no",
    ),
    "strings of a row group": Limit(
        strings_of_size(2 * MIB),
        strings_of_size(2 * MIB + 1),
        "they become 2,097,153",
        "strings are",
    ),
    "strings of the index": Limit(
        statuses_of_size(2 * MIB),
        statuses_of_size(2 * MIB + 1),
        "they become 2,097,153",
        "strings are no bomb",
        "shards",
    ),
    "values of a row group": Limit(
        segments(65_536), segments(65_537), "it declares 65,537 values", "values of a row group"
    ),
    "bytes of a footer": Limit(
        footer_of_size(36 * 1024),
        footer_of_size(36 * 1024 + 1),
        "its footer declares 36,865",
        "size of a footer",
    ),
    "pairs of a footer": Limit(
        pairs(1025), pairs(1026), "footer cannot be read", "key-value pairs"
    ),
    "pairs of the index's footer": Limit(
        pairs_of_index(1025), pairs_of_index(1026), "cannot be decoded", "key-value pairs"
    ),
    "bytes of the header of a page": Limit(
        page_header_of(256), page_header_of(257), "cut off", "header of a page is short"
    ),
}
