"""The text of a shard: `rows.parquet`, one line a sequence, each line with a digest of itself.

Row groups hold 64 lines, so that one sequence's text costs one small read. Page checksums catch
most damage; the digest (over everything in the line) catches the rest, a damaged footer included.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.arrays import canonical_json
from logitstore.records import Segment, SequenceText

MEMBER = "rows.parquet"
GROUP_LINES = 64
_DIGEST_BYTES = 16

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
    """The first 16 bytes of the SHA-256 of the line as canonical JSON."""
    segments = [[s.role, s.text, s.supervised] for s in line.segments]
    fields = [line.row, line.part, line.status, line.supervised_start, segments, line.messages]
    return hashlib.sha256(canonical_json(fields)).digest()[:_DIGEST_BYTES]


def encode_lines(lines: Sequence[SequenceText]) -> pa.Buffer:
    """`rows.parquet` as bytes."""
    columns: dict[str, list[Any]] = {
        "row": [line.row for line in lines],
        "part": [line.part for line in lines],
        "status": [line.status for line in lines],
        "supervised_start": [line.supervised_start for line in lines],
        "segments": [[s._asdict() for s in line.segments] for line in lines],
        "messages": [line.messages for line in lines],
        "digest": [line_digest(line) for line in lines],
    }
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema=SCHEMA),
        sink,
        row_group_size=GROUP_LINES,
        compression="zstd",
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


class LinesReader:
    """Lines by position; one row group is decoded at a time and kept."""

    def __init__(self, data: memoryview, count: int) -> None:
        """Read the footer.

        Raises:
            ValueError: It is not the schema, the row groups or the number of lines it must be.
        """
        try:
            source = pa.BufferReader(pa.py_buffer(data))
            self._file = pq.ParquetFile(source, page_checksum_verification=True)
            if not self._file.schema_arrow.equals(SCHEMA):
                raise ValueError("it does not have the columns of a shard's text")
            meta = self._file.metadata
            sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        except (pa.ArrowException, OSError) as e:
            raise ValueError(f"the footer cannot be read ({e})") from None
        full, rest = divmod(count, GROUP_LINES)
        if sizes != [GROUP_LINES] * full + [rest] * (rest > 0):
            raise ValueError(f"it holds {sum(sizes)} lines, expected {count} in groups of 64")
        self.count = count
        self._cached: tuple[int, list[SequenceText]] | None = None

    def __getitem__(self, i: int) -> SequenceText:
        """Line i.

        Raises:
            ValueError: Its bytes are damaged.
        """
        group, place = divmod(i, GROUP_LINES)
        if self._cached is None or self._cached[0] != group:
            self._cached = (group, self._read_group(group))
        return self._cached[1][place]

    def column(self, name: str) -> list[Any]:
        """One column of all lines, without reading the others."""
        try:
            return list(self._file.read(columns=[name]).column(0).to_pylist())
        except (pa.ArrowException, OSError) as e:
            raise ValueError(f"column {name} cannot be read ({e})") from None

    def _read_group(self, group: int) -> list[SequenceText]:
        try:
            items = self._file.read_row_group(group).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
            raise ValueError(f"row group {group} cannot be read ({e})") from None
        lines = []
        for item in items:
            digest = item.pop("digest")
            item["segments"] = tuple(Segment(**s) for s in item["segments"])
            line = SequenceText(**item)
            if digest != line_digest(line):
                raise ValueError(f"the text of row {line.row} does not match its digest")
            lines.append(line)
        return lines
