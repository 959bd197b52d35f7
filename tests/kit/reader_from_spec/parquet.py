"""Sections 6 and 7: `rows.parquet` and `index.parquet`, and rejections 9 and 10 of them."""

import hashlib
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.kit.reader_from_spec.json_text import canonical, is_whole, parse
from tests.kit.reader_from_spec.refusing import RefusedError, must
from tests.kit.reader_from_spec.thrift import read_struct

FIDELITY = ("at_cap_fraction", "dropped_entries", "entries_mean", "kl_mean", "l1_max", "l1_mean")
FIDELITY += ("tail_mean", "tail_p99")
COUNTS = ("sequences", "records", "entries", "draws", "supervised_bytes", "file_bytes")
INDEX = pa.schema(
    [(name, pa.int64()) for name in ("shard", "first_row", "stop_row", *COUNTS)]
    + [("sha256", pa.string()), ("statuses", pa.string())]
    + [(n, pa.int64() if n == "dropped_entries" else pa.float64()) for n in FIDELITY]
)
SEGMENT = pa.struct([("role", pa.string()), ("text", pa.string()), ("supervised", pa.bool_())])
ROWS = pa.schema(
    [
        ("row", pa.int64()),
        ("part", pa.int32()),
        ("status", pa.string()),
        ("supervised_start", pa.int64()),
        ("segments", pa.list_(SEGMENT)),
        ("messages", pa.string()),
        ("digest", pa.binary()),
    ]
)
LINE = ("row", "part", "status", "supervised_start", "segments", "messages")
PLAIN_TYPES = ("BOOLEAN", "INT32", "INT64", "DOUBLE", "BYTE_ARRAY")
FREE, RATIO = 2 << 20, 32


def read_lines(data, count, first, stop):
    """Section 6: the lines of a shard with rows from `first` to `stop` - 1."""
    lines = read_table(data, ROWS, 9, cut(count, 64))
    for line in lines:
        values = [line[name] for name in LINE if name != "messages"]
        must(None not in values and None not in line["segments"], "no nulls in a line")
        for segment in line["segments"]:
            must(segment["text"] is not None and segment["supervised"] is not None, "no nulls")
        segments = [[s["role"], s["text"], s["supervised"]] for s in line["segments"]]
        fields = [segments if name == "segments" else line[name] for name in LINE]
        digest = line.pop("digest")
        must(digest == hashlib.sha256(canonical(fields)).digest()[:16], "digest of the line")
    rows = [line["row"] for line in lines]
    must(rows == sorted(rows), "lines in the order of their rows")
    must(all(first <= row < stop for row in rows), "rows of the shard")
    must(count > stop - first or rows == list(range(first, stop)), "line i is of row i")
    return lines


def read_index(data, cuts):
    """Section 7: one line a shard."""
    lines = read_table(data, INDEX, len(INDEX), cut(len(cuts) - 1, 1 << 20))
    for number, line in enumerate(lines):
        must(None not in line.values(), "no nulls in the index")
        own = (line["shard"], line["first_row"], line["stop_row"])
        must(own == (number, *cuts[number : number + 2]), "a line is of its shard")
        must(all(is_whole(line[name], 2**48 - 1) for name in COUNTS), "counts in the index")
        statuses = parse(line["statuses"].encode())
        must(isinstance(statuses, dict), "statuses in the index")
        must(all(is_whole(n, 1 << 63) for n in statuses.values()), "statuses in the index")
    return lines


def cut(count, size):
    return [size] * (count // size) + [count % size] * (count % size > 0)


def read_table(data, schema, columns, sizes):
    """A Parquet file of these columns and row groups, none of them a bomb."""
    check_footer(data, len(sizes))
    try:
        meta = pq.ParquetFile(pa.BufferReader(data)).metadata
        must(meta.schema.to_arrow_schema().equals(schema), "columns of a Parquet file")
        must(len(meta.metadata or {}) <= 1024 + len(sizes), "key-value pairs of a footer")
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts_of(schema))
        groups = [meta.row_group(g) for g in range(meta.num_row_groups)]
        must([g.num_rows for g in groups] == sizes, "row groups")
        lines = []
        for number, group in enumerate(groups):
            must(group.num_columns == columns, "columns of a row group")
            stored = check_group(data, group, columns)
            table = file.read_row_group(number, use_threads=False)
            must(strings_of(table) <= max(FREE, RATIO * stored), "the strings are no bomb")
            lines += table.to_pylist()
    except (pa.ArrowException, OSError, struct.error, IndexError, OverflowError) as e:
        raise RefusedError(f"Parquet: {e}") from None
    return lines


def texts_of(schema):
    inside = ["segments.list.element.role", "segments.list.element.text"]
    kinds = (pa.types.is_string, pa.types.is_binary)
    texts = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
    return texts + inside * ("segments" in schema.names)


def check_footer(data, groups):
    must(len(data) >= 12 and data[:4] == data[-4:] == b"PAR1", "a Parquet file")
    size = int.from_bytes(data[-8:-4], "little")
    must(size <= min((32 << 10) + (4 << 10) * groups, len(data) - 12), "size of a footer")


def check_group(data, group, columns):
    """Rejections 9 and 10 of the pages of a row group; its stored bytes."""
    stored = decoded = values = 0
    for about in map(group.column, range(columns)):
        must(about.compression in ("ZSTD", "UNCOMPRESSED"), "compression of a column")
        must(about.file_path == "", "a column is in the file")
        must(about.physical_type in PLAIN_TYPES, "type of a column")
        start = min(about.data_page_offset, about.dictionary_page_offset or 1 << 62)
        stop = start + about.total_compressed_size
        must(4 <= start <= stop <= len(data) - 12, "place of a column")
        pages = list(pages_of(data, start, stop))
        must(sum(n for _, n in pages) == about.num_values, "values of a column")
        stored, decoded = stored + stop - start, decoded + sum(size for size, _ in pages)
        values = max(values, about.num_values)
    must(decoded <= max(FREE, RATIO * stored), "a row group is no bomb")
    must(values <= max(65_536, decoded // 4), "values of a row group")
    return stored


def pages_of(data, start, stop):
    """Decoded bytes and values of each page, its checksum verified."""
    while start < stop:
        fields, length = read_struct(data[start : min(start + 256, stop)])
        kind, decoded, stored = (fields.get(number) for number in (1, 2, 3))
        inner = fields.get({0: 5, 2: 7}.get(kind))
        must(isinstance(inner, dict), "kind of a page")
        values = inner.get(1)
        must(all(is_whole(n, 2**31 - 1) for n in (decoded, stored, values)), "sizes of a page")
        start += length
        must(start + stored <= stop, "a page ends in its column")
        crc = struct.pack("<I", zlib.crc32(data[start : start + stored]))
        must(fields.get(4) == struct.unpack("<i", crc)[0], "checksum of a page")
        start += stored
        yield decoded, values if kind == 0 else 0


def strings_of(table):
    """Bytes of all strings, each as often as it is used; they are read as dictionaries."""
    total = 0
    for column in table.combine_chunks().columns:
        for array in flat(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)):
            if pa.types.is_dictionary(array.type):
                sizes = [0 if v is None else len(v.as_buffer()) for v in array.dictionary]
                used = array.indices.drop_null().to_numpy(zero_copy_only=False)
                times = np.bincount(used, minlength=len(sizes)) if len(used) else [0] * len(sizes)
                total += sum(int(n) * size for n, size in zip(times, sizes, strict=True))
    return total


def flat(array):
    if pa.types.is_list(array.type):
        return flat(array.flatten())
    if pa.types.is_struct(array.type):
        return [inner for child in array.flatten() for inner in flat(child)]
    return [array]
