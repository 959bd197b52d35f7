"""Turn columns of a dataset into one string of bytes a row, for its digest and its length."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.text.strict_json import trouble

_INT_BYTES = 8
_COMPACT = (",", ":")


def of_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Encode strings as their UTF-8 bytes; a missing one has none."""
    return pc.fill_null(column.cast(pa.large_binary()), b"")


def of_integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Encode lists of integers as little-endian 64-bit numbers; a missing list is an empty one.

    Raises:
        pa.ArrowInvalid: A value that no 64-bit integer holds.
    """
    lists = column.cast(pa.large_list(pa.int64())).combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    sizes = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64)
    values = np.asarray(pc.fill_null(lists.flatten(), 0), "<i8")
    offsets = np.concatenate([[0], np.cumsum(sizes)]) * _INT_BYTES
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(values.tobytes())]
    return pa.chunked_array(
        [pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(sizes), buffers)]
    )


def of_values(values: Sequence[Any], where: Callable[[int], str]) -> pa.ChunkedArray:
    """Encode any values as JSON; the order of keys is kept.

    Args:
        values: What the rows hold.
        where: Names each row in messages, by its place among the values.

    Raises:
        InputError: A value that JSON does not have, such as a date of Arrow's.
    """
    written = []
    for i, value in enumerate(values):
        try:
            text = json.dumps(value, separators=_COMPACT, allow_nan=False)
        except (RecursionError, TypeError, ValueError) as error:
            raise InputError(
                f"{where(i)}: {trouble(error)}. Write it as text, or drop the row."
            ) from error
        written.append(text.encode())
    return pa.chunked_array([pa.array(written, pa.large_binary())])


def lengths_of(column: pa.ChunkedArray) -> I64:
    """Count the bytes of each row of an encoded column."""
    return np.asarray(pc.binary_length(column), np.int64)


def content_of(chunk: pa.Array) -> memoryview:
    """Return the bytes of all rows of an array, one after the other, not copied."""
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    if data is None or len(ends) == 0:
        return memoryview(b"")
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


def is_text(dtype: pa.DataType) -> bool:
    """Tell whether a column holds strings of any width, or is missing in every row."""
    return bool(
        pa.types.is_string(dtype)
        or pa.types.is_large_string(dtype)
        or pa.types.is_string_view(dtype)
        or pa.types.is_null(dtype)
    )


def is_list(dtype: pa.DataType) -> bool:
    """Tell whether a column holds lists of anything, of any width."""
    return bool(
        pa.types.is_list(dtype)
        or pa.types.is_large_list(dtype)
        or pa.types.is_fixed_size_list(dtype)
    )


def is_integers(dtype: pa.DataType) -> bool:
    """Tell whether a column holds lists of integers or of booleans."""
    if not is_list(dtype):
        return False
    value = dtype.value_type
    return bool(pa.types.is_integer(value) or pa.types.is_boolean(value))
