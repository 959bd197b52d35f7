"""Describe a dataset that is loaded: its rows, and what each of its columns can be read as."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from logitstore.rows import arrow_text as as_bytes
from logitstore.rows.column_writer import INTEGERS, JSON, SHAPES, TEXT, Column

if TYPE_CHECKING:
    from datasets import Dataset

#: A column of Arrow's lists or objects, beside the shapes of `column_writer`; or of anything else.
NESTED, OTHER = "nested", "other"


@dataclass(frozen=True)
class Source:
    """A split of a dataset.

    Attributes:
        dataset: The rows.
        name: What the user called it, for messages.
        files: The columns of the files that it was read from; empty where `datasets` read it.
        keys: Every key of those files, also of columns that nobody reads.
        firsts: The first row of each file, and the file; empty where rows are not those of files.
    """

    dataset: Dataset
    name: str
    files: Mapping[str, Column] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    firsts: tuple[tuple[int, str], ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of all columns, for messages and to look for the known ones."""
        if not self.keys:
            return list(self.dataset.column_names)
        return list(dict.fromkeys((*self.keys, *self.files)))

    def shape(self, column: str) -> str | None:
        """Tell what a column can be read as; None where it has no value in any row."""
        if column in self.files:
            return self.files[column].shape
        if _has_json(self.dataset.features[column]):
            return JSON
        dtype = self._type(column)
        if pa.types.is_null(dtype):
            return None
        if as_bytes.is_text(dtype):
            return TEXT
        if as_bytes.is_integers(dtype):
            return INTEGERS
        return NESTED if as_bytes.is_list(dtype) or pa.types.is_struct(dtype) else OTHER

    def found(self, column: str) -> str:
        """Name what a column holds, for messages."""
        if column in self.files:
            shape = self.files[column].shape
            return "nulls alone" if shape is None else SHAPES[shape]
        return str(self._type(column))

    def is_exact(self, column: str) -> bool:
        """Tell whether its nested values are what was written, keys without a value among them."""
        return column in self.files or _has_json(self.dataset.features[column])

    def where(self, row: int) -> str:
        """Name a row for messages: in its own file, where there are several."""
        if len(self.firsts) < 2:
            return f"{self.name}: row {row:,}"
        first, name = self.firsts[bisect_right(self.firsts, row, key=lambda f: f[0]) - 1]
        return f"{name}: row {row - first:,}"

    def _type(self, column: str) -> Any:
        return self.dataset.features.arrow_schema.field(column).type


def _has_json(feature: Any) -> bool:
    """Tell whether a feature, or the items of its lists, are of the type Json of `datasets`."""
    import datasets

    inner = getattr(feature, "feature", feature)
    return isinstance(inner, datasets.Json)
