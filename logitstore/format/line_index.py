"""Find single lines of a row group of `rows.parquet` again, without decoding their neighbours.

Parquet decodes a group whole: nine columns of 64 lines, of which a shuffled epoch wants one. Nearly
all of these bytes are text (and messages). So what was decoded once, with every check, leaves an
index behind: the small columns, and where in a page each text lies. To read a line then takes that
page alone: its bytes are compared with their checksum, decompressed and cut, and the line's own
digest says whether it is the line that was written.

Parquet's encodings are not decoded here. Strings lie at the end of a page, each behind its length
of four bytes; where the bytes at these places are not what pyarrow decoded (another encoding, or
several pages), there is no index, and pyarrow reads the group whenever a line of it is wanted.

Shape legend: n = lines of the group, s = their segments, u = different strings of a column.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.format.numpy_types import I64
from logitstore.format.parquet_limits import UNCOMPRESSED, ColumnChunk, Page, pages_of
from logitstore.records import Segment, SequenceText
from logitstore.storage.file_bytes import Bytes

#: The columns of a group, as their chunks lie in the file.
_TEXT, _MESSAGES = 5, 7
_NEVER_NULL = ("row", "part", "status", "supervised_start", "segments", "digest")
_LENGTH_BYTES = 4
_POINTER_BYTES = 8
_ZSTD = pa.Codec("zstd")


class Pages(NamedTuple):
    """The decompressed pages that hold the strings of a group; empty where it has none."""

    text: bytes
    messages: bytes

    @property
    def nbytes(self) -> int:
        return len(self.text) + len(self.messages)


@dataclass(frozen=True, slots=True)
class Strings:
    """The places of a column's strings in its page.

    Attributes:
        page: The page; None if the column has no string at all.
        codec: How it is compressed.
        which: The number of each value's string; -1 for null.
        starts, stops: (u,) where strings lie in the decompressed page.
    """

    page: Page | None
    codec: int
    which: I64
    starts: I64
    stops: I64

    @classmethod
    def of(cls, data: Bytes, chunk: ColumnChunk, values: pa.DictionaryArray) -> "Strings | None":
        """Find the strings of a column that pyarrow has decoded; None if they lie otherwise.

        Raises:
            ValueError: Its page is damaged.
        """
        which = pc.fill_null(values.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        is_there = which >= 0
        if not is_there.any():
            nowhere = np.zeros(0, np.int64)
            return cls(None, chunk.codec, which, nowhere, nowhere)
        pages, strings = pages_of(data, chunk), values.dictionary
        if not pages[0].is_dictionary:  # each value is written out
            if len(pages) > 1:
                return None
            strings = strings.take(pa.array(which[is_there]))
            which[is_there] = np.arange(is_there.sum())
        found = strings.cast(pa.binary()).to_pylist()
        lengths = np.array([len(each) for each in found], np.int64)
        content = read_page(data, pages[0], chunk.codec)
        sizes = lengths + _LENGTH_BYTES
        stops = len(content) - int(sizes.sum()) + np.cumsum(sizes)
        starts = stops - lengths
        places = zip(starts.tolist(), stops.tolist(), strict=True)
        if any(content[a:b] != each for (a, b), each in zip(places, found, strict=True)):
            return None
        return cls(pages[0], chunk.codec, which, starts, stops)

    def content(self, data: Bytes) -> bytes:
        """Read the page, decompressed.

        Raises:
            ValueError: It is damaged.
        """
        return b"" if self.page is None else read_page(data, self.page, self.codec)

    def value(self, i: int, content: bytes) -> str | None:
        """Cut value i out of the page."""
        n = self.which.item(i)
        return None if n < 0 else content[self.starts.item(n) : self.stops.item(n)].decode()

    @property
    def nbytes(self) -> int:
        return self.which.nbytes + self.starts.nbytes + self.stops.nbytes


@dataclass(frozen=True, slots=True)
class LineIndex:
    """All of a group but its texts, and where these lie.

    Attributes:
        rows, parts, supervised_starts: (n,) as in the file.
        statuses: Of each line.
        digests: (n,) of each line.
        cuts: (n + 1,) segments of line i are those from value i up to value i + 1.
        roles, supervised: Of each segment.
        texts: Of each segment.
        messages: Of each line.
        nbytes: What all of it takes, about.
    """

    rows: I64
    parts: I64
    supervised_starts: I64
    statuses: list[str]
    digests: list[bytes]
    cuts: I64
    roles: list[str | None]
    supervised: list[bool]
    texts: Strings
    messages: Strings
    nbytes: int

    @classmethod
    def of(cls, table: pa.Table, data: Bytes, chunks: Sequence[ColumnChunk]) -> "LineIndex | None":
        """Make the index of a row group that pyarrow has decoded; None if it cannot be had.

        Args:
            table: The group, checked; repeated strings are references to a dictionary.
            data: The file.
            chunks: The group's columns in the file.

        Raises:
            ValueError: A page is damaged.
        """
        columns = {name: table.column(name) for name in table.column_names}
        if any(column.num_chunks != 1 for column in columns.values()):
            return None
        if any(columns[name].null_count for name in _NEVER_NULL):
            return None
        held = {name: column.chunk(0) for name, column in columns.items()}
        segments = held["segments"].values
        role, text, supervised = (segments.field(name) for name in ("role", "text", "supervised"))
        if segments.null_count or text.null_count or supervised.null_count:
            return None
        texts = Strings.of(data, chunks[_TEXT], text)
        messages = Strings.of(data, chunks[_MESSAGES], held["messages"])
        if texts is None or messages is None:
            return None
        rows, parts, starts = (_numbers(held[n]) for n in ("row", "part", "supervised_start"))
        statuses, digests, roles = map(_shared, (held["status"], held["digest"], role))
        cuts, are_supervised = _numbers(held["segments"].offsets), supervised.to_pylist()
        nbytes = sum(each.nbytes for each in (rows, parts, starts, cuts))
        nbytes += texts.nbytes + messages.nbytes
        nbytes += _POINTER_BYTES * (len(statuses) + len(digests) + len(roles) + len(are_supervised))
        nbytes += sum(len(each) for each in {*statuses, *digests, *roles} if each is not None)
        return cls(
            rows=rows,
            parts=parts,
            supervised_starts=starts,
            statuses=statuses,
            digests=digests,
            cuts=cuts,
            roles=roles,
            supervised=are_supervised,
            texts=texts,
            messages=messages,
            nbytes=nbytes,
        )

    def read(self, data: Bytes) -> Pages:
        """Read the pages that hold the group's texts.

        Raises:
            ValueError: One is damaged.
        """
        return Pages(self.texts.content(data), self.messages.content(data))

    def line(self, i: int, pages: Pages) -> tuple[SequenceText, bytes]:
        """Put line i together; its digest is yet to be compared.

        Raises:
            ValueError: Its text is not UTF-8.
        """
        segments = tuple(
            Segment(str(self.texts.value(s, pages.text)), self.supervised[s], self.roles[s])
            for s in range(self.cuts.item(i), self.cuts.item(i + 1))
        )
        line = SequenceText(
            self.rows.item(i),
            self.parts.item(i),
            self.statuses[i],
            segments,
            self.supervised_starts.item(i),
            self.messages.value(i, pages.messages),
        )
        return line, self.digests[i]


def read_page(data: Bytes, page: Page, codec: int) -> bytes:
    """Read a page, check it and decompress it.

    Raises:
        ValueError: It does not match its checksum, or cannot be decompressed.
    """
    stored = data[page.start : page.start + page.stored]
    if zlib.crc32(stored) != page.checksum:
        raise ValueError("a page does not match its checksum")
    if codec == UNCOMPRESSED:
        return bytes(stored)
    try:
        return bytes(_ZSTD.decompress(stored, page.decoded, asbytes=True))
    except OSError as e:
        raise ValueError(f"a page cannot be decompressed ({e})") from None


def _numbers(array: pa.Array) -> I64:
    return np.asarray(array.to_numpy(zero_copy_only=False), np.int64)


def _shared(array: pa.Array) -> list[Any]:
    """Turn an array into a list in which equal values are one object."""
    if not pa.types.is_dictionary(array.type):
        return list(array.to_pylist())
    values = [*array.dictionary.to_pylist(), None]
    return [values[i] for i in pc.fill_null(array.indices, -1).to_pylist()]
