"""Compute what a Parquet file would cost to decode, from its headers, before decoding anything.

A Parquet reader believes the file: a page header of 20 bytes can ask for 2 GiB, a run-length code
of five for a billion values, and one long dictionary entry can be repeated without end. The files
of a store have one plain shape (zstd or no compression, data pages of version 1), so this module
walks the headers of a column chunk, checks that shape and adds up the declared sizes.

The footer is walked here, too: pyarrow 26 aborts the whole process when it is asked for the
metadata of a column in which one bit of a level histogram is flipped.

Footer and page headers are Thrift structs in the compact protocol: a field is a byte (id step,
type) and a value; integers are zigzag varints. Field numbers below are those of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.format.limits import check_ratio
from logitstore.storage.file_bytes import Bytes

#: Everything that pyarrow raises on a damaged or hostile file: more than its own errors.
PYARROW_ERRORS = (
    pa.ArrowException,
    OSError,
    RuntimeError,
    MemoryError,
    OverflowError,
    LookupError,
)
#: Items of a list in a footer, beside the row groups.
CONTAINER_ITEMS = 1024
_FREE_VALUES = 65_536
_BYTES_PER_VALUE = 4  # decoded, at least, of each value beyond the free ones
_FOOTER_BYTES, _FOOTER_BYTES_PER_GROUP = 32 * 1024, 4 * 1024
_MAGIC = b"PAR1"
_MAX_HEADER_BYTES = 256
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_ZSTD, UNCOMPRESSED = 6, 0
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _STRUCT = *range(1, 10), 12
_INTEGERS, _TRUTHS = frozenset((_I16, _I32, _I64)), frozenset((_TRUE, _FALSE))
_WIDTHS = {_BYTE: 1, _DOUBLE: 8}
_MAX_DEPTH = 8
_SCHEMA, _ROW_GROUPS = 2, 4  # the fields of the footer
_INT96 = 3
_CUT_OFF = "a Thrift struct is cut off"


@dataclass
class Cost:
    """The sizes that column chunks declare, added up.

    Attributes:
        stored: Their bytes in the file.
        decoded: The bytes of their pages once decompressed.
        values: The largest number of values in a column, nulls included.
    """

    stored: int = 0
    decoded: int = 0
    values: int = 0

    def check(self) -> None:
        """Raise ValueError if the sizes are beyond what undamaged files need.

        Raises:
            ValueError: A declared size is far beyond the data.
        """
        check_ratio(self.decoded, self.stored)
        if self.values > max(_FREE_VALUES, self.decoded // _BYTES_PER_VALUE):
            raise ValueError(f"it declares {self.values:,} values in {self.decoded:,} bytes")


def text_bytes(table: pa.Table) -> int:
    """Count the bytes of all strings of a table, each as often as it is referred to."""
    arrays = (a for column in table.itercolumns() for chunk in column.chunks for a in _flat(chunk))
    return sum(map(_string_bytes, arrays))


def _flat(array: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_list(array.type):
        yield from _flat(array.flatten())
    elif pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from _flat(child)
    else:
        yield array


def _string_bytes(array: pa.Array) -> int:
    """Count the bytes of an array's strings, which are references to a dictionary; else 0."""
    if not pa.types.is_dictionary(array.type) or len(array.dictionary) == 0:
        return 0
    lengths = pc.fill_null(pc.binary_length(array.dictionary), 0)
    taken = lengths.to_numpy(zero_copy_only=False)
    indices = pc.drop_null(array.indices).to_numpy(zero_copy_only=False)
    return int(taken.astype(np.int64)[indices].sum())


def check_footer(data: Bytes, groups: int) -> int:
    """Check the footer's size, before it is parsed, by the number of row groups; find its start.

    Raises:
        ValueError: It is larger than that of such a file, or the file has no footer.
    """
    if len(data) < 3 * len(_MAGIC) or data[:4] != _MAGIC or data[-4:] != _MAGIC:
        raise ValueError("it is not a Parquet file")
    size = int.from_bytes(data[-8:-4], "little")
    limit = min(_FOOTER_BYTES + _FOOTER_BYTES_PER_GROUP * groups, len(data) - 12)
    if size > limit:
        raise ValueError(f"its footer declares {size:,} bytes, expected at most {limit:,}")
    return len(data) - 8 - size


class ColumnChunk(NamedTuple):
    """The place of a column of a row group in the file, as the footer declares it."""

    codec: int
    values: int
    start: int
    stored: int

    @property
    def place(self) -> tuple[int, int]:
        """Its first byte in the file, and the one after its last."""
        return self.start, self.start + self.stored


class Page(NamedTuple):
    """A page of a column, as its header describes it.

    Attributes:
        is_dictionary: Whether it holds the column's different values, and not the column.
        start: Its first byte in the file, behind the header.
        stored: Its bytes in the file.
        decoded: Its bytes once decompressed.
        values: The values of the column in it, nulls included.
        checksum: CRC-32 of its bytes in the file.
    """

    is_dictionary: bool
    start: int
    stored: int
    decoded: int
    values: int
    checksum: int


def column_chunks(data: Bytes) -> list[list[ColumnChunk]]:
    """List the columns of every row group; call `check_footer` first.

    Raises:
        ValueError: The footer cannot be parsed.
    """
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[len(data) - 8 - size : -8]
    # Of a group of columns there is no type. pyarrow goes by these, other readers by the chunks'.
    types = [e[1] for e in _Thrift(footer).items_of(_SCHEMA) if isinstance(e, dict) and 1 in e]
    if _INT96 in types:
        raise ValueError("a column is of the type INT96, which is not written here")
    return [_columns(group, types) for group in _Thrift(footer).items_of(_ROW_GROUPS)]


def _columns(group: Any, types: Sequence[Any]) -> list[ColumnChunk]:
    try:
        chunks = group[1]
        if [chunk[3][1] for chunk in chunks] != types:
            raise ValueError("a column is of another type than the schema says")
        return [_column(chunk) for chunk in chunks]
    except (KeyError, TypeError):
        raise ValueError("the footer lacks what every column has") from None


def _column(chunk: Any) -> ColumnChunk:
    about = chunk[3]
    start = min(about[9], about.get(11) or about[9])
    column = ColumnChunk(about[4], about[5], start, about[7])
    if 1 in chunk or not all(type(n) is int and n >= 0 for n in column):
        raise ValueError("the footer places a column where it cannot be")
    return column


def columns_cost(data: Bytes, columns: Sequence[ColumnChunk]) -> Cost:
    """Add up what columns of a row group would cost to decode.

    Raises:
        ValueError: One lies outside the file, or does not have the shape described above.
    """
    total = Cost()
    for number, chunk in enumerate(columns):
        if chunk.codec not in (_ZSTD, UNCOMPRESSED):
            raise ValueError(f"column {number} is compressed by codec {chunk.codec}")
        stop = chunk.start + chunk.stored
        if not 4 <= chunk.start <= stop <= len(data) - 12:
            raise ValueError(f"column {number} lies outside the file")
        pages = pages_of(data, chunk)
        values = sum(page.values for page in pages)
        if values != chunk.values:
            raise ValueError(f"column {number} has another number of values")
        total.stored += chunk.stored
        total.decoded += sum(page.decoded for page in pages)
        total.values = max(total.values, values)
    return total


def pages_of(data: Bytes, chunk: ColumnChunk) -> list[Page]:
    """List the pages of a column; call `columns_cost` first.

    Raises:
        ValueError: A header cannot be parsed, or a page reaches outside the column.
    """
    pages, cursor = [], chunk.start
    stop = chunk.start + chunk.stored
    while cursor < stop:
        page = _Thrift(data[cursor : min(cursor + _MAX_HEADER_BYTES, stop)]).page(cursor)
        cursor = page.start + page.stored
        pages.append(page)
    if cursor != stop:
        raise ValueError("a page reaches outside its column")
    return pages


class _Thrift:
    """A reader of Thrift's compact protocol, as much of it as Parquet needs."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._at = bytes(data), 0  # whose items are found twice as fast as a view's

    def page(self, start: int) -> Page:
        """Read the header of a page that begins at `start` of the file."""
        fields = self._struct(0)
        kind, decoded, stored = (fields.get(i) for i in (1, 2, 3))
        inner, checksum = fields.get(5 if kind == _DATA_PAGE else 7), fields.get(4)
        if kind not in (_DATA_PAGE, _DICTIONARY_PAGE) or not isinstance(inner, dict):
            raise ValueError("a page is of a kind that is not written here")
        if type(checksum) is not int:
            raise ValueError("a page has no checksum")
        sizes = [_size(n) for n in (decoded, stored, inner.get(1))]
        return Page(
            is_dictionary=kind == _DICTIONARY_PAGE,
            start=start + self._at,
            stored=sizes[1],
            decoded=sizes[0],
            values=sizes[2] if kind == _DATA_PAGE else 0,
            checksum=checksum & 0xFFFF_FFFF,
        )

    def items_of(self, wanted: int) -> Iterator[Any]:
        """Yield the items of a list that is a field of this struct, one at a time."""
        for number, kind in self._fields():
            if (number, kind) == (wanted, _LIST):
                count, item = self._list_head()
                for _ in range(count):
                    yield self._value(item, 1)
            else:
                self._value(kind, 1)

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Yield (number, type) of each field; the caller then reads the field's value."""
        number = 0
        while head := self._byte():
            step = head >> 4
            number = number + step if step else self._number(number)
            yield number, head & 15

    def _number(self, before: int) -> int:
        """Read the number of a field that is not given as a step from the one before."""
        number = self._integer()
        if number <= before:  # fields ascend, so none is there twice
            raise ValueError("a Thrift struct has its fields out of order")
        return number

    def _struct(self, depth: int) -> dict[int, Any]:
        """Read all fields: as `_fields` and `_value` do, but most are short integers, and many."""
        fields: dict[int, Any] = {}
        number, data, is_shallow = 0, self._data, depth <= _MAX_DEPTH
        try:
            while head := data[self._at]:
                self._at += 1
                step, kind = head >> 4, head & 15
                number = number + step if step else self._number(number)
                if is_shallow and kind in _INTEGERS:
                    value = data[self._at]
                    self._at += 1
                    if value > 127:
                        value = self._long(value)
                    fields[number] = (value >> 1) ^ -(value & 1)
                else:
                    fields[number] = self._value(kind, depth)
        except IndexError:
            raise ValueError(_CUT_OFF) from None
        self._at += 1
        return fields

    def _list_head(self) -> tuple[int, int]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        if count > len(self._data) - self._at:
            raise ValueError("a Thrift list is longer than its data")
        return count, head & 15

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("a Thrift struct is nested too deeply")
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._skip(self._varint())
        if kind == _STRUCT:
            return self._struct(depth + 1)
        if kind == _LIST:
            count, item = self._list_head()
            if item in _TRUTHS:
                return self._skip(count)
            return [self._value(item, depth + 1) for _ in range(count)]
        if kind in _TRUTHS:
            return kind == _TRUE
        if kind in _WIDTHS:
            return self._skip(_WIDTHS[kind])
        raise ValueError("a Thrift struct has a field that is not written here")

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise ValueError(_CUT_OFF)

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = self._byte()
        return value if value < 128 else self._long(value)

    def _long(self, value: int) -> int:
        """Read the rest of a varint of several bytes."""
        value, shift = value & 127, 7
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a Thrift number is too long")

    def _byte(self) -> int:
        at = self._at
        try:
            byte = self._data[at]
        except IndexError:
            raise ValueError(_CUT_OFF) from None
        self._at = at + 1
        return byte


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("a page declares sizes that cannot be")
    return value
