"""Write `index.parquet`: one line a shard, so that opening a store opens no shard.

All of it can be read from the shards again: it is derived, and nothing in it is believed before
the digest in the seal matches (`index_columns.py` reads it).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.format.canonical_json import parse_json
from logitstore.format.encoded import NOTHING_MEASURED
from logitstore.format.plan import Plan

COUNTS = ("sequences", "records", "entries", "draws", "supervised_bytes", "file_bytes")
SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("shard", "first_row", "stop_row", *COUNTS)]
    + [("sha256", pa.string()), ("statuses", pa.string())]
    + [
        (name, pa.int64() if type(NOTHING_MEASURED[name]) is int else pa.float64())
        for name in sorted(NOTHING_MEASURED)
    ]
)
_FREE_BYTES, _BYTES_PER_SHARD = 64 * 1024, 4096  # a line takes about 300
GROUP_LINES = 1024 * 1024  # as Parquet writers cut them
_LINES_AT_ONCE = 4096

Line = Mapping[str, Any]


class Lines(Sequence[Line]):
    """The lines of an index: a dict for each shard, made when it is asked for.

    As columns they take a tenth of the memory.

    Args:
        table: The columns, all of them.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, lines: Iterable[Line]) -> "Lines":
        """Gather lines, of which no more than a few thousand are dicts at once."""
        rest, parts = iter(lines), []
        while some := list(islice(rest, _LINES_AT_ONCE)):
            parts.append(pa.RecordBatch.from_pylist(some, schema=SCHEMA))
        return cls(pa.Table.from_batches(parts, schema=SCHEMA).combine_chunks())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Line]:
        for batch in self.table.to_batches(max_chunksize=_LINES_AT_ONCE):
            yield from batch.to_pylist()

    @overload
    def __getitem__(self, index: int) -> Line: ...
    @overload
    def __getitem__(self, index: slice) -> "Lines": ...
    def __getitem__(self, index: int | slice) -> "Line | Lines":
        if isinstance(index, slice):
            return Lines(self.table.take(list(range(*index.indices(len(self))))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        line: Line = self.table.slice(index % len(self), 1).to_pylist()[0]
        return line


def encode_index(lines: Iterable[Line]) -> bytes:
    """Encode the lines as the bytes of the file."""
    sink = pa.BufferOutputStream()
    whole = lines if isinstance(lines, Lines) else Lines.of(lines)
    pq.write_table(
        whole.table.cast(SCHEMA),  # a table that was read has references to texts
        sink,
        compression="zstd",
        write_statistics=False,
        write_page_checksum=True,
    )
    return bytes(memoryview(sink.getvalue()))


def statuses_of(lines: Iterable[Line]) -> dict[str, int]:
    """Count the sequences of all shards by status."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(parse_json(line["statuses"].encode()))
    return dict(counts)


def most_bytes(plan: Plan) -> int:
    """Count the bytes that the index of a plan may have."""
    return _FREE_BYTES + _BYTES_PER_SHARD * plan.shard_count
