"""Flatten Arrow columns of lists into values and counts, without a Python object for each value.

Shape legend: a column has L lines, which hold T tokens in total, which hold m values in total:
counts[0] is (L,), counts[1] is (T,), values is (m,).
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.format.numpy_types import I64, Array


class Nested(NamedTuple):
    """A column of nested lists, flattened.

    Attributes:
        counts: For each level of lists, outermost first, the number of items in each list.
        values: The items of the innermost lists, concatenated.
    """

    counts: tuple[I64, ...]
    values: pa.Array

    def numbers(self, dtype: Any, missing: float | None = None) -> Array:
        """Return the values as an array.

        Args:
            dtype: The type of the array.
            missing: The number that replaces a null.

        Raises:
            ValueError: A value is null and `missing` is not given, or a value is not a number, or
                not a whole one where those are asked for.
        """
        values = self.values
        if _is_text(values.type):  # numpy would read "NaN" and "5", too
            raise ValueError("a value is text, not a number")
        if values.null_count:
            if missing is None:
                raise ValueError("a value is missing")
            values = pc.fill_null(values, missing)
        try:
            given = values.to_numpy(zero_copy_only=False)
            with np.errstate(invalid="ignore"):
                made = np.asarray(given, dtype)
        except (TypeError, pa.ArrowException) as e:
            raise ValueError(f"{e}") from None
        if given.dtype.kind == "f" and made.dtype.kind in "iu" and not np.array_equal(given, made):
            raise ValueError("a value is no whole number")
        return made


def nested(column: pa.Array) -> Nested:
    """Flatten a column of lists; a null list counts as empty."""
    counts = []
    while _is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        counts.append(lengths.to_numpy(zero_copy_only=False).astype(np.int64))
        column = column.flatten()
    return Nested(tuple(counts), column)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
