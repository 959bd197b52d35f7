"""What a Parquet file would cost to decode, read from its page headers before anything is decoded.

A Parquet reader believes the file: a page header of 20 bytes can ask for 2 GiB, a run-length code
of five for a billion values, and one long dictionary entry can be repeated without end. Ours have
one plain shape (zstd or no compression, data pages of version 1), so this walks the headers of a
column chunk, holds them to that shape and adds up what they declare.

The page headers are Thrift structs in the compact protocol: a field is a byte (id step, type) and a
value; integers are zigzag varints. https://github.com/apache/parquet-format (Thrift definitions).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

#: Beyond so many decoded bytes, a file must hold at least 1 byte of data for `MAX_RATIO` decoded.
FREE_BYTES = 2 * 1024 * 1024
MAX_RATIO = 32
_FREE_VALUES = 65_536
_BYTES_PER_VALUE = 4  # beyond the free ones a value has at least so many decoded bytes
_FOOTER_BYTES, _FOOTER_BYTES_PER_GROUP = 32 * 1024, 4 * 1024
_MAGIC = b"PAR1"
_MAX_HEADER_BYTES = 256
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_CODECS = ("ZSTD", "UNCOMPRESSED")
_TRUE, _FALSE, _BYTE, _I64, _STRUCT = 1, 2, 3, 6, 12


@dataclass
class Cost:
    """What column chunks declare.

    Attributes:
        stored: Bytes in the file.
        decoded: Bytes of their pages once decompressed.
        values: Most values of a column, nulls included.
    """

    stored: int = 0
    decoded: int = 0
    values: int = 0

    def check(self) -> None:
        """Hold it to what honest files need.

        Raises:
            ValueError: A declared size is far beyond the data.
        """
        check_ratio(self.decoded, self.stored)
        if self.values > max(_FREE_VALUES, self.decoded // _BYTES_PER_VALUE):
            raise ValueError(f"it declares {self.values:,} values in {self.decoded:,} bytes")


def check_ratio(decoded: int, stored: int) -> None:
    """Refuse bombs.

    Raises:
        ValueError: So many decoded bytes are far beyond the stored ones.
    """
    if decoded > max(FREE_BYTES, MAX_RATIO * stored):
        raise ValueError(f"{stored:,} bytes declare that they become {decoded:,}")


def check_footer(data: memoryview, groups: int) -> None:
    """Hold the footer's size to that of a file with so many row groups, before it is parsed.

    Raises:
        ValueError: It is larger, or there is none.
    """
    if len(data) < 3 * len(_MAGIC) or data[:4] != _MAGIC or data[-4:] != _MAGIC:
        raise ValueError("it is not a Parquet file")
    size = int.from_bytes(data[-8:-4], "little")
    limit = min(_FOOTER_BYTES + _FOOTER_BYTES_PER_GROUP * groups, len(data) - 12)
    if size > limit:
        raise ValueError(f"its footer declares {size:,} bytes, expected at most {limit:,}")


def group_cost(
    data: memoryview, metadata: pq.FileMetaData, group: int, columns: Sequence[int] | None = None
) -> Cost:
    """What a row group, or some of its columns, would take to decode.

    Raises:
        ValueError: A column chunk lies outside the file or is not of the shape ours have.
    """
    total = Cost()
    about = metadata.row_group(group)
    for i in columns if columns is not None else range(about.num_columns):
        chunk = about.column(i)
        if chunk.compression not in _CODECS or chunk.file_path:
            raise ValueError(f"column {chunk.path_in_schema} is compressed by {chunk.compression}")
        starts = [chunk.data_page_offset]
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            starts.append(chunk.dictionary_page_offset)
        start, stop = min(starts), min(starts) + chunk.total_compressed_size
        if not 4 <= start <= stop <= len(data) - 12:
            raise ValueError(f"column {chunk.path_in_schema} lies outside the file")
        one = _chunk_cost(data[start:stop])
        if one.values != chunk.num_values:
            raise ValueError(f"column {chunk.path_in_schema} has another number of values")
        total.stored += stop - start
        total.decoded += one.decoded
        total.values = max(total.values, one.values)
    return total


def _chunk_cost(data: memoryview) -> Cost:
    cost, cursor = Cost(), 0
    while cursor < len(data):
        page = _Fields(data[cursor : cursor + _MAX_HEADER_BYTES]).page()
        cursor += page["header_bytes"] + page["stored"]
        cost.decoded += page["decoded"]
        cost.values += page["values"]
    if cursor != len(data):
        raise ValueError("a page reaches outside its column")
    return cost


class _Fields:
    """The compact protocol, as much of it as a page header without statistics needs."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def page(self) -> dict[str, int]:
        """Type, sizes and number of values of the page whose header begins here."""
        fields = self._struct()
        kind, decoded, stored = (fields.get(i) for i in (1, 2, 3))
        inner = fields.get(5 if kind == _DATA_PAGE else 7)
        if kind not in (_DATA_PAGE, _DICTIONARY_PAGE) or not isinstance(inner, dict):
            raise ValueError("a page is of a kind that is not written here")
        sizes: list[int] = [_size(n) for n in (decoded, stored, inner.get(1))]
        in_column = sizes[2] if kind == _DATA_PAGE else 0
        header = {"header_bytes": self._at, "stored": sizes[1], "decoded": sizes[0]}
        return header | {"values": in_column}

    def _struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 15
            number = number + step if step else self._integer()
            if number in found:
                raise ValueError("a page header has a field twice")
            found[number] = self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if _BYTE < kind <= _I64:
            return self._integer()
        if kind == _STRUCT and depth < 2:
            return self._struct(depth + 1)
        raise ValueError("a page header has a field that is not written here")

    def _integer(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return (value >> 1) ^ -(value & 1)
            if shift > 63:
                raise ValueError("a page header has a number that is too long")

    def _byte(self) -> int:
        if self._at >= len(self._data):
            raise ValueError("a page header is cut off")
        self._at += 1
        return self._data[self._at - 1]


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("a page declares sizes that cannot be")
    return value
