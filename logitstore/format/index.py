"""Write and read `index.parquet`: one line a shard, so that opening a store opens no shard.

All of it can be read from the shards again: it is derived, and nothing in it is believed before
the digest in the seal matches.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.format.canonical_json import parse_json
from logitstore.format.encoded import NOTHING_MEASURED
from logitstore.format.limits import check_ratio
from logitstore.format.parquet_limits import (
    CONTAINER_ITEMS,
    PYARROW_ERRORS,
    check_footer,
    column_chunks,
    columns_cost,
    text_bytes,
)
from logitstore.format.spec import Plan
from logitstore.storage.paths import StorePath

_COUNTS = ("sequences", "records", "entries", "draws", "supervised_bytes", "file_bytes")
_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("shard", "first_row", "stop_row", *_COUNTS)]
    + [("sha256", pa.string()), ("statuses", pa.string())]
    + [
        (name, pa.int64() if type(NOTHING_MEASURED[name]) is int else pa.float64())
        for name in sorted(NOTHING_MEASURED)
    ]
)
_FREE_BYTES, _BYTES_PER_SHARD = 64 * 1024, 4096  # a line takes about 300
GROUP_LINES = 1024 * 1024  # as Parquet writers cut them
_TEXTS = ["sha256", "statuses"]


def encode_index(lines: Sequence[dict[str, Any]]) -> bytes:
    """Encode the lines as the bytes of the file."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(list(lines), schema=_SCHEMA),
        sink,
        compression="zstd",
        write_statistics=False,
        write_page_checksum=True,
    )
    return bytes(memoryview(sink.getvalue()))


def statuses_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count the sequences of all shards by status."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(parse_json(line["statuses"].encode()))
    return dict(counts)


def most_bytes(plan: Plan) -> int:
    """Count the bytes that the index of a plan may have."""
    return _FREE_BYTES + _BYTES_PER_SHARD * plan.shard_count


def read_index(path: StorePath, digest: str, plan: Plan) -> list[dict[str, Any]]:
    """Read the lines of the index of a sealed store.

    Args:
        path: The file.
        digest: Its SHA-256, from the seal.
        plan: The store's; every line must be of its shard.

    Raises:
        ValueError: It is not the file that was sealed, or cannot be an index of this plan.
        OSError: It cannot be read.
    """
    data = path.read_limited(most_bytes(plan))
    actual = hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise ValueError(
            f"it is not the file that was sealed (SHA-256 {actual[:12]}…, not {digest[:12]}…)"
        )
    view, (full, rest) = memoryview(data), divmod(plan.shard_count, GROUP_LINES)
    sizes = [GROUP_LINES] * full + [rest] * (rest > 0)
    check_footer(view, len(sizes))
    try:
        lines = _decode(view, sizes)
    except PYARROW_ERRORS as e:
        raise ValueError(f"it cannot be decoded ({e})") from None
    if len(lines) != plan.shard_count:
        raise ValueError(f"it has {len(lines)} lines, the plan has {plan.shard_count} shards")
    for index, line in enumerate(lines):
        _check_line(line, index, plan)
    return lines


def _decode(view: memoryview, sizes: list[int]) -> list[dict[str, Any]]:
    """Decode row groups of these many lines."""
    file = pq.ParquetFile(
        pa.BufferReader(view),
        page_checksum_verification=True,
        read_dictionary=_TEXTS,
        thrift_container_size_limit=CONTAINER_ITEMS + len(sizes),
    )
    meta = file.metadata
    if not meta.schema.to_arrow_schema().equals(_SCHEMA):
        raise ValueError("it does not have the columns of an index")
    chunks = column_chunks(view)
    held = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
    if held != sizes or [len(c) for c in chunks] != [len(_SCHEMA)] * len(sizes):
        raise ValueError(f"it has row groups of {held[:5]} lines, expected {sizes[:5]}")
    lines: list[dict[str, Any]] = []
    for group, columns in enumerate(chunks):
        cost = columns_cost(view, columns)
        cost.check()
        if cost.values != sizes[group]:
            raise ValueError(f"it declares {cost.values} lines")
        # Texts stay references to a dictionary until their total size is known.
        table = file.read_row_group(group, use_threads=False)
        check_ratio(text_bytes(table), cost.stored)
        lines += table.to_pylist()
    return lines


def _check_line(line: dict[str, Any], index: int, plan: Plan) -> None:
    rows = (line["first_row"], line["stop_row"])
    if line["shard"] != index or rows != plan.shard_rows(index):
        raise ValueError(f"line {index} is not that of shard {index}")
    if None in line.values() or not all(0 <= line[name] < 2**48 for name in _COUNTS):
        raise ValueError(f"line {index} holds a value that cannot be")
    statuses = parse_json(line["statuses"].encode())
    if not isinstance(statuses, dict) or not all(
        type(n) is int and n >= 0 for n in statuses.values()
    ):
        raise ValueError(f"line {index} has statuses that cannot be")
