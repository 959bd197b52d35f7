"""Lists of lists as flat values and counts, from Arrow and from Python, without an object a value.

Shape legend: a column of L lines, of T tokens together, of m values together: counts[0] is (L,),
counts[1] (T,), values (m,).
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.format.numpy_types import I64, Array


class Nested(NamedTuple):
    """A column of lists.

    Attributes:
        counts: Items of each list, a level of lists at a time, outermost first.
        values: What the innermost lists hold, one after the other.
    """

    counts: tuple[I64, ...]
    values: pa.Array

    def numbers(self, dtype: Any, missing: float | None = None) -> Array:
        """The values as an array.

        Args:
            dtype: Of the result.
            missing: What stands for a value that is not there.

        Raises:
            ValueError: A value is not there, and nothing stands for it; or it is no number.
        """
        values = self.values
        if values.null_count:
            if missing is None:
                raise ValueError("a value is missing")
            values = pc.fill_null(values, missing)
        try:
            return np.asarray(values.to_numpy(zero_copy_only=False), dtype)
        except (TypeError, pa.ArrowException) as e:
            raise ValueError(f"{e}") from None


def nested(column: pa.Array) -> Nested:
    """Takes a column of lists apart; a missing list is an empty one."""
    counts = []
    while _is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        counts.append(lengths.to_numpy(zero_copy_only=False).astype(np.int64))
        column = column.flatten()
    return Nested(tuple(counts), column)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
