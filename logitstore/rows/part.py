"""Take some rows of a dataset along: to another machine, which need not have the dataset.

A part is small and can be pickled. The rows it makes have the numbers, names and settings that they
have in the whole, so whoever reads them there makes of them what would be made here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from logitstore.format.numpy_types import I64
from logitstore.rows.dataset import Rows
from logitstore.rows.survey import Survey

if TYPE_CHECKING:
    from datasets import Dataset

_FINGERPRINT = "part"  # of what is in memory alone: `datasets` would compute one of the content


@dataclass(frozen=True)
class Part:
    """Some rows of a dataset.

    Attributes:
        places: (n,) their numbers in the dataset, ascending.
        total: Rows of the dataset.
        about: What the dataset is; its `source` has these rows alone, in memory.
    """

    places: I64
    total: int
    about: _About

    @classmethod
    def of(cls, rows: Rows, places: I64) -> Self:
        """Take rows by their numbers, which must be ascending."""
        source = rows.source
        chosen = source.dataset.select_columns(list(rows.columns))
        is_range = len(places) and places[-1] - places[0] + 1 == len(places)
        index: Any = slice(int(places[0]), int(places[-1]) + 1) if is_range else places.tolist()
        table = chosen.with_format("arrow")[index]
        about = _About(
            replace(source, dataset=_in_memory(table, chosen.features), keys=tuple(source.names)),
            rows.layout,
            rows.survey.obeys,
        )
        return cls(places, len(rows), about)

    def rows(self) -> Rows:
        """Make the rows; of the others, none can be read."""
        about = self.about
        placed: Any = _Placed(about.source.dataset, self.places, self.total)
        # Of all rows, which nobody has here: only what they say of themselves is asked for.
        known = Survey("", np.empty(0, np.int64), about.obeys)
        return Rows(replace(about.source, dataset=placed), about.layout, known=known)


@dataclass(frozen=True)
class _About:
    source: Any
    layout: Any
    obeys: tuple[str, ...]


def _in_memory(table: pa.Table, features: Any) -> Dataset:
    """Copy a table, which may be a slice of a larger one, as a dataset of its own."""
    import datasets

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    copied = pa.ipc.open_stream(sink.getvalue()).read_all()
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(
        datasets.table.InMemoryTable(copied), info=info, fingerprint=_FINGERPRINT
    )


class _Placed:
    """Some rows of a dataset under the numbers that they have in it: as much as `Rows` asks of one.

    Args:
        dataset: These rows.
        places: (n,) their numbers, ascending.
        total: Rows of the whole.
    """

    def __init__(self, dataset: Any, places: I64, total: int) -> None:
        self._dataset, self._places, self._total = dataset, places, total
        self.features, self.column_names = dataset.features, dataset.column_names
        self.cache_files: list[Any] = []  # nothing can change while it is read

    def __len__(self) -> int:
        return self._total

    def select_columns(self, names: list[str]) -> _Placed:
        return _Placed(self._dataset.select_columns(names), self._places, self._total)

    def with_format(self, name: str | None) -> _Placed:
        return _Placed(self._dataset.with_format(name), self._places, self._total)

    def __getitem__(self, chosen: int | slice) -> Any:
        if isinstance(chosen, int):
            return self._dataset[self._at(chosen, 1)]
        first, stop, _ = chosen.indices(self._total)
        at = self._at(first, stop - first)
        return self._dataset[at : at + stop - first]

    def _at(self, first: int, count: int) -> int:
        """Find rows by their number in the whole."""
        at = int(np.searchsorted(self._places, first))
        found = self._places[at : at + count]
        if found.tolist() != list(range(first, first + count)):
            raise IndexError(f"rows {first} to {first + count - 1} are not in this part")
        return at
