"""Write and read the text of a shard: `rows.parquet`, one line a sequence, each with a digest.

Row groups hold 64 lines, so that one sequence's text costs one small read. Page checksums catch
most damage; the digest (over everything in the line) catches the rest, a damaged footer included.
"""

import hashlib
import mmap
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.format.canonical_json import canonical_json
from logitstore.format.kept_chunks import KEPT
from logitstore.format.limits import check_ratio
from logitstore.format.line_index import LineIndex, Pages
from logitstore.format.parquet_limits import (
    CONTAINER_ITEMS,
    PYARROW_ERRORS,
    ColumnChunk,
    check_footer,
    column_chunks,
    columns_cost,
    text_bytes,
)
from logitstore.records import Segment, SequenceText
from logitstore.storage.file_bytes import Bytes

MEMBER = "rows.parquet"
GROUP_LINES = 64
LINE_DIGEST_BYTES = 16
_MAGIC_BYTES = 4
_PARSED = 3  # bytes of a text in Python's objects for each of its own, about
_INDEX_BYTES = 16 * 1024 * 1024  # of one shard; a group takes about six thousand
_LEAVES = 9  # columns, with those inside segments
_REQUIRED = ("row", "part", "status", "supervised_start")
_REPEATED = [
    "status",
    "messages",
    "digest",
    "segments.list.element.role",
    "segments.list.element.text",
]

_SEGMENT = pa.struct([("role", pa.string()), ("text", pa.string()), ("supervised", pa.bool_())])
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("part", pa.int32()),
        ("status", pa.string()),
        ("supervised_start", pa.int64()),
        ("segments", pa.list_(_SEGMENT)),
        ("messages", pa.string()),
        ("digest", pa.binary()),
    ]
)


def line_digest(line: SequenceText) -> bytes:
    """Compute the first 16 bytes of the SHA-256 of the line as canonical JSON."""
    segments = [[s.role, s.text, s.supervised] for s in line.segments]
    fields = [line.row, line.part, line.status, line.supervised_start, segments, line.messages]
    return hashlib.sha256(canonical_json(fields)).digest()[:LINE_DIGEST_BYTES]


def encode_lines(lines: Sequence[SequenceText]) -> pa.Buffer:
    """Encode lines as the bytes of `rows.parquet`.

    Text that compresses so well that a reader would take it for a bomb is written uncompressed.
    """
    columns: dict[str, list[Any]] = {
        "row": [line.row for line in lines],
        "part": [line.part for line in lines],
        "status": [line.status for line in lines],
        "supervised_start": [line.supervised_start for line in lines],
        "segments": [[s._asdict() for s in line.segments] for line in lines],
        "messages": [line.messages for line in lines],
        "digest": [line_digest(line) for line in lines],
    }
    table = pa.table(columns, schema=SCHEMA)
    data = _write(table, compression="zstd", use_dictionary=True)
    try:
        reader = LinesReader(memoryview(data), len(lines))
        for group in range(reader.groups):
            reader.table(group)
    except ValueError:
        data = _write(table, compression="none", use_dictionary=False)
    return data


def _write(table: pa.Table, *, compression: str, use_dictionary: bool) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=GROUP_LINES,
        compression=compression,
        use_dictionary=use_dictionary,
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


class LinesReader:
    """A reader of lines by position.

    The first line asked for in a row group makes pyarrow decode the group. What it leaves behind is
    an index (:mod:`logitstore.format.line_index`): later lines cost one page, and the last page
    stays for the next one. Of a group without an index, the first line asked for is parsed alone;
    a second one makes the reader parse and keep all of them.
    """

    def __init__(self, data: Bytes, count: int) -> None:
        """Read the footer and check it.

        Raises:
            ValueError: Schema, row groups or number of lines are not those that they must be.
        """
        full, rest = divmod(count, GROUP_LINES)
        self.groups = full + (rest > 0)
        self._data = data.cast("B") if isinstance(data, memoryview) else data
        footer = check_footer(self._data, self.groups)
        self._meta: pq.FileMetaData | None = None
        try:
            file = self._opened([(0, _MAGIC_BYTES), (footer, len(data))])
            if not file.schema_arrow.equals(SCHEMA):
                raise ValueError("it does not have the columns of a shard's text")
            self._meta = meta = file.metadata
            sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        except PYARROW_ERRORS as e:
            raise ValueError(f"the footer cannot be read ({e})") from None
        if sizes != [GROUP_LINES] * full + [rest] * (rest > 0):
            raise ValueError(f"it holds {sum(sizes)} lines, expected {count} in groups of 64")
        self.count = count
        self._chunks: list[list[ColumnChunk]] | None = None
        self._table: tuple[int, pa.Table] | None = None
        self._lines: tuple[int, list[SequenceText]] | None = None
        self._pages: tuple[int, Pages] | None = None
        self._kept = _Kept({}, 0)

    def __getitem__(self, i: int) -> SequenceText:
        """Read line i.

        Raises:
            ValueError: Its bytes are damaged.
        """
        group, place = divmod(i, GROUP_LINES)
        index = self._index(group)
        if index is None:
            return self._parsed(group, place)
        # Threads share the reader: what is kept may be another group's from one line to the next.
        pages = self._pages
        if pages is None or pages[0] != group:
            pages = self._pages = (group, index.read(self._data))
            KEPT.note(self, self._kept.nbytes + pages[1].nbytes)
        return _checked(*index.line(place, pages[1]))

    def _index(self, group: int) -> LineIndex | None:
        """Return the index of a row group, made if it is not there; None if it cannot be had."""
        kept = self._kept
        if group not in kept.indexes:
            index = LineIndex.of(self.table(group), self._data, self._columns(group))
            kept = self._kept = kept.with_one(group, index)
        return kept.indexes[group]

    def _parsed(self, group: int, place: int) -> SequenceText:
        """Read a line of a group that has no index."""
        kept, table = self._lines, self._table
        if kept is not None and kept[0] == group:
            return kept[1][place]
        if table is None or table[0] != group:
            table = self._table = (group, self.table(group))
            KEPT.note(self, table[1].nbytes)
            return _line(table[1].slice(place, 1).to_pylist()[0])
        lines = [_line(item) for item in table[1].to_pylist()]
        self._lines = (group, lines)
        KEPT.note(self, table[1].nbytes + _PARSED * text_bytes(table[1]))
        return lines[place]

    def drop(self) -> None:
        """Drop what is kept for the next read."""
        self._table = self._lines = self._pages = None
        self._kept = _Kept({}, 0)

    def rows(self, first: int, stop: int) -> list[int]:
        """Read the dataset row of every line, without the text.

        Raises:
            ValueError: They are damaged, not in order, or not from `first` to `stop` - 1.
        """
        for group in range(self.groups):
            cost = columns_cost(self._data, self._columns(group)[:1])
            if cost.values > GROUP_LINES:
                raise ValueError(f"row group {group} has {cost.values} rows")
            cost.check()
        places = [chunk.place for g in range(self.groups) for chunk in self._columns(g)[:1]]
        try:
            file = self._opened(places)
            rows = list(file.read(columns=["row"], use_threads=False).column(0).to_pylist())
        except PYARROW_ERRORS as e:
            raise ValueError(f"the rows cannot be read ({e})") from None
        if len(rows) != self.count or None in rows or rows != sorted(rows):
            raise ValueError("the lines are not in the order of their rows")
        if rows and not first <= rows[0] <= rows[-1] < stop:
            raise ValueError(f"a line is of row {rows[0]} or {rows[-1]}, not of this shard")
        return rows

    def first_rows(self, first: int, stop: int) -> dict[str, int]:
        """Read the first dataset row of every status, without the text.

        Raises:
            ValueError: Lines are damaged, not in order, or not from `first` to `stop` - 1.
        """
        rows, place = self.rows(first, stop), 0
        found: dict[str, int] = {}
        for group in range(self.groups):
            columns_cost(self._data, self._columns(group)[:3]).check()
        places = [chunk.place for g in range(self.groups) for chunk in self._columns(g)[:3]]
        try:
            # A status stays a reference to a dictionary: it may be long, and used by every line.
            file = self._opened(places, ["status"])
            column = file.read(columns=["status"], use_threads=False).column(0)
            for chunk in column.chunks:
                for code in dict.fromkeys(chunk.indices.to_pylist()):
                    status = str(chunk.dictionary[code].as_py())
                    found.setdefault(status, rows[place + chunk.indices.index(code).as_py()])
                place += len(chunk)
        except (*PYARROW_ERRORS, IndexError, TypeError) as e:
            raise ValueError(f"the statuses cannot be read ({e})") from None
        return found

    def table(self, group: int) -> pa.Table:
        """Read a row group, after checking that it is not a bomb.

        Raises:
            ValueError: It is a bomb, or its bytes are damaged.
        """
        cost = columns_cost(self._data, self._columns(group))
        cost.check()
        try:
            # Repeated values stay references to a dictionary until their total size is known.
            file = self._opened([chunk.place for chunk in self._columns(group)], _REPEATED)
            table = file.read_row_group(group, use_threads=False)
            table.validate(full=True)
        except PYARROW_ERRORS as e:
            raise ValueError(f"row group {group} cannot be read ({e})") from None
        check_ratio(text_bytes(table), cost.stored)
        if len(table) != min(GROUP_LINES, self.count - group * GROUP_LINES):
            raise ValueError(f"row group {group} has {len(table)} lines")
        return table

    def _columns(self, group: int) -> list[ColumnChunk]:
        if self._chunks is None:
            self._chunks = column_chunks(self._data)
        if len(self._chunks) != self.groups or len(self._chunks[group]) != _LEAVES:
            raise ValueError("the footer has other row groups or columns than it must")
        return self._chunks[group]

    def _opened(
        self, places: Sequence[tuple[int, int]], read_dictionary: Sequence[str] = ()
    ) -> pq.ParquetFile:
        """Open a copy of the file in memory that has its bytes at some places, and zeros elsewhere.

        For one read: a `ParquetFile` is not made for several threads, and pyarrow starts some of
        its own for whatever is not in memory. Pages of the copy that are never written take none.
        """
        copy = _zeros(len(self._data))
        for start, stop in places:
            copy[start:stop] = self._data[start:stop]
        return pq.ParquetFile(
            pa.BufferReader(pa.py_buffer(copy)),
            metadata=self._meta,
            page_checksum_verification=True,
            read_dictionary=list(read_dictionary),
            thrift_container_size_limit=CONTAINER_ITEMS + self.groups,
        )


class _Kept(NamedTuple):
    """The indexes that a reader keeps, the oldest first; never changed, since threads share them.

    Attributes:
        indexes: By row group; None for one that cannot be had.
        nbytes: What they take.
    """

    indexes: dict[int, LineIndex | None]
    nbytes: int

    def with_one(self, group: int, index: LineIndex | None) -> "_Kept":
        """Add one, and leave out the oldest beyond the bound."""
        indexes, nbytes = {**self.indexes, group: index}, self.nbytes + _size_of(index)
        while nbytes > _INDEX_BYTES and len(indexes) > 1:
            nbytes -= _size_of(indexes.pop(next(iter(indexes))))
        return _Kept(indexes, nbytes)


def _size_of(index: LineIndex | None) -> int:
    return 0 if index is None else index.nbytes


def _zeros(size: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return mmap.mmap(-1, size, flags=flags)
    except OSError as e:
        raise MemoryError(f"no memory for {size:,} bytes ({e.strerror})") from None


def _line(item: dict[str, Any]) -> SequenceText:
    """Make a line of the values in the file; check their types and the digest."""
    digest = item.pop("digest")
    try:
        item["segments"] = tuple(Segment(**s) for s in item["segments"])
        line = SequenceText(**item)
    except TypeError:
        raise ValueError("a line has no segments") from None
    values = [item[name] for name in _REQUIRED]
    values += [value for s in line.segments for value in (s.text, s.supervised)]
    if None in values:
        raise ValueError(f"a line of row {line.row} lacks a value that every line has")
    return _checked(line, digest)


def _checked(line: SequenceText, digest: bytes) -> SequenceText:
    """Compare a line with the digest that was written of it."""
    if digest != line_digest(line):
        raise ValueError(f"the text of row {line.row} does not match its digest")
    return line
