"""Read columns of `index.parquet`, which has a line for each shard, and check them.

A line is not believed because it is there: the file must have the digest of the seal (whoever calls
this has compared it), and every line must be that of its shard. Only the columns that are asked for
are decoded: of two million shards all of them take half a gigabyte, and one 18 MB.

Shape legend: n = shards.
"""

import binascii
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.format.canonical_json import parse_json
from logitstore.format.index import COUNTS, GROUP_LINES, SCHEMA
from logitstore.format.limits import check_ratio
from logitstore.format.numpy_types import I64
from logitstore.format.parquet_limits import (
    CONTAINER_ITEMS,
    PYARROW_ERRORS,
    ColumnChunk,
    check_footer,
    column_chunks,
    columns_cost,
    text_bytes,
)
from logitstore.format.plan import Plan
from logitstore.storage.file_bytes import Bytes

ALL = tuple(SCHEMA.names)
#: The columns that say of which shard a line is.
PLACE = ("shard", "first_row", "stop_row")
_TEXTS = ["sha256", "statuses"]
_MOST = 2**48
_DIGEST_CHARS = 64
_HEX = re.compile(rb"[0-9a-f]*")
_IMPOSSIBLE = "holds a value that cannot be"

U8 = npt.NDArray[np.uint8]


def read_columns(data: Bytes, plan: Plan, names: Sequence[str] = ALL) -> pa.Table:
    """Read some columns of an index.

    Args:
        data: The file.
        plan: The store's; every line must be of its shard, if one of `PLACE` is read.
        names: The columns.

    Raises:
        ValueError: It cannot be an index of this plan.
    """
    return pa.concat_tables(read_groups(data, plan, names))


def read_groups(data: Bytes, plan: Plan, names: Sequence[str] = ALL) -> Iterator[pa.Table]:
    """Read some columns of an index as :func:`read_columns` does, a row group at a time."""
    full, rest = divmod(plan.shard_count, GROUP_LINES)
    sizes = [GROUP_LINES] * full + [rest] * (rest > 0)
    check_footer(data, len(sizes))
    try:
        yield from _decode(data, plan, sizes, names)
    except PYARROW_ERRORS as e:
        raise ValueError(f"it cannot be decoded ({e})") from None


def digests_of(table: pa.Table) -> U8:
    """Return the column `sha256` as (n, 32) bytes.

    Raises:
        ValueError: A value of it is no digest.
    """
    parts = [np.zeros((0, 32), np.uint8)]
    for chunk in table.column("sha256").chunks:
        texts = chunk.dictionary.to_pylist()
        whole = "".join(texts).encode()
        if any(len(text) != _DIGEST_CHARS for text in texts) or not _HEX.fullmatch(whole):
            raise ValueError("it has a digest that is not 64 hex digits")
        different = np.frombuffer(binascii.unhexlify(whole), np.uint8).reshape(-1, 32)
        parts.append(different[chunk.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(parts)


def numbers_of(table: pa.Table, name: str) -> I64:
    """Return a column of whole numbers as (n,) numbers."""
    return _numbers(table.column(name))


def _numbers(column: pa.ChunkedArray) -> I64:
    """Join the chunks of a column; pyarrow would load pandas for it, which takes 50 MB."""
    chunks = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks]
    whole: I64 = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    return whole


class _File(io.RawIOBase):
    """Bytes as the file that pyarrow asks for."""

    def __init__(self, data: Bytes) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        part = self._data[self._at : self._at + len(room)]
        room[: len(part)] = part
        self._at += len(part)
        return len(part)


def _decode(data: Bytes, plan: Plan, sizes: list[int], names: Sequence[str]) -> Iterator[pa.Table]:
    """Decode row groups of these many lines."""
    file = pq.ParquetFile(
        _File(data),
        page_checksum_verification=True,
        read_dictionary=_TEXTS,
        thrift_container_size_limit=CONTAINER_ITEMS + len(sizes),
        pre_buffer=False,
    )
    meta = file.metadata
    if not meta.schema.to_arrow_schema().equals(SCHEMA):
        raise ValueError("it does not have the columns of an index")
    chunks = column_chunks(data)
    held = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
    if sum(held) != plan.shard_count:
        raise ValueError(f"it has {sum(held)} lines, the plan has {plan.shard_count} shards")
    if held != sizes or [len(c) for c in chunks] != [len(SCHEMA)] * len(sizes):
        raise ValueError(f"it has row groups of {held[:5]} lines, expected {sizes[:5]}")
    first = 0
    for group, columns in enumerate(chunks):
        _check_cost(data, columns, sizes[group], names)
        parts = {}
        for name in names:
            parts[name] = _column(file, group, name, columns, sizes[group])
            _check_column(parts[name], name, first, plan)
        yield pa.table(parts)
        first += sizes[group]


def _column(
    file: pq.ParquetFile, group: int, name: str, columns: Sequence[ColumnChunk], size: int
) -> pa.ChunkedArray:
    """Decode a column of a row group; texts stay references until their total size is known.

    The limit is of both columns of texts together, and of digests it is known what they take.
    """
    table = file.read_row_group(group, columns=[name], use_threads=False)
    strings, stored = text_bytes(table), columns[ALL.index(name)].stored
    if name == "statuses":
        strings += _DIGEST_CHARS * size
        stored += columns[ALL.index("sha256")].stored
    check_ratio(strings, stored)
    return table.column(name)


def _check_cost(
    data: Bytes, columns: Sequence[ColumnChunk], size: int, names: Sequence[str]
) -> None:
    """Check that the wanted columns of a row group are no bomb, by their headers.

    A column that is the same in every line takes next to nothing, as in an honest index. So those
    of the lines' places are counted with it, which take eight bytes a line.
    """
    chosen = [i for i, name in enumerate(ALL) if name in names or name in PLACE]
    cost = columns_cost(data, [columns[i] for i in chosen])
    cost.check()
    if cost.values != size:
        raise ValueError(f"it declares {cost.values} lines")


def _check_column(column: pa.ChunkedArray, name: str, first: int, plan: Plan) -> None:
    """Check the values of lines from number `first` on: of their shard, and such as can be."""
    if column.null_count:
        raise ValueError(f"line {first + column.is_null().index(True).as_py()} {_IMPOSSIBLE}")
    if name == "statuses":
        for chunk in column.chunks:
            _check_statuses(chunk, first)
    if name in COUNTS:
        found = _numbers(column)
        _check((found >= 0) & (found < _MOST), first, _IMPOSSIBLE)
    if name in PLACE:
        stop = first + len(column)
        cuts = plan.boundaries[first : stop + 1]
        expected = (np.arange(first, stop), cuts[:-1], cuts[1:])[PLACE.index(name)]
        is_right = _numbers(column) == expected
        _check(is_right, first, f"is not that of shard {first + int(is_right.argmin())}")


def _check(are_good: npt.NDArray[np.bool_], first: int, why: str) -> None:
    if not are_good.all():
        raise ValueError(f"line {first + int(are_good.argmin())} {why}")


def _check_statuses(chunk: pa.DictionaryArray, first: int) -> None:
    """Check each different text once; most shards have the same."""
    for text in chunk.dictionary.to_pylist():
        statuses = parse_json(text.encode())
        if not isinstance(statuses, dict) or not all(
            type(n) is int and n >= 0 for n in statuses.values()
        ):
            raise ValueError(f"a line from {first} on has statuses that cannot be")
