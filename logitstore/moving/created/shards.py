"""Keep rows until their shard is full, and commit it; know which rows are there and which not."""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from logitstore.errors import MismatchError
from logitstore.format.canonical_json import canonical_json
from logitstore.format.encoded import EncodedRecords
from logitstore.format.spec import Plan
from logitstore.records import SequenceText
from logitstore.store import LogitStore
from logitstore.writing.writer import StoreWriter


class Shards:
    """The rows of a store that is being written.

    Args:
        plan: Shards of equally many rows.
        begin: Begins the store, or opens it, when the first shard is full.
        before: What earlier runs have committed; None: nothing.
    """

    def __init__(
        self, plan: Plan, begin: Callable[[], StoreWriter], before: LogitStore | None
    ) -> None:
        self.plan, self._begin, self._before = plan, begin, before
        self._there = frozenset(() if before is None else before.shards)
        self._added = np.zeros(plan.rows, np.bool_)
        self._pending: dict[int, dict[int, tuple[SequenceText, EncodedRecords | None]]] = {}
        self.writer: StoreWriter | None = None

    @property
    def rows_before(self) -> int:
        """The number of rows that were committed before."""
        return 0 if self._before is None else self._before.rows_held

    def is_added(self, row: int) -> bool:
        """Tell whether a row was added in this run."""
        return bool(self._added[row])

    def is_committed(self, row: int) -> bool:
        """Tell whether a row was there before this run."""
        return self._shard_of(row) in self._there

    def compare(self, row: int, line: SequenceText, where: str) -> None:
        """Compare a row with what an earlier run has stored of it, and count it as added.

        Raises:
            MismatchError: They are not the same.
        """
        assert self._before is not None
        if [self._before.text(i) for i in self._before.row(row)] != [line]:
            raise MismatchError(
                f"{where}: the store has another text for it, so these are other data than it was "
                "begun with. Give the same rows to go on, or choose another place.",
                kind="dataset-changed",
            )
        self._added[row] = True

    def keep(self, row: int, line: SequenceText, records: EncodedRecords | None) -> None:
        """Keep a row until its shard is committed."""
        self._pending.setdefault(self._shard_of(row), {})[row] = (line, records)
        self._added[row] = True

    def full(self) -> list[int]:
        """List the shards that can be committed."""
        return [index for index in self._pending if self._is_full(index)]

    def commit(self, index: int) -> None:
        """Commit a shard, and begin the store with the first.

        Raises:
            MismatchError: Somebody has begun another store there.
            StorageError: The file system failed.
        """
        if self.writer is None:
            self.writer = self._begin()
        rows = self._pending[index]
        self.writer.write_shard(index, [rows[row] for row in sorted(rows)])
        del self._pending[index]

    def missing_rows(self) -> Iterator[int]:
        """Yield the rows that are neither there nor added, in order."""
        for index in range(self.plan.shard_count):
            if index not in self._there:
                for row in range(*self.plan.shard_rows(index)):
                    if not self._added[row]:
                        yield row

    def missing(self) -> list[int]:
        """List the shards that are not there, whoever was to write them."""
        if self.writer is None:
            return list(range(self.plan.shard_count))
        return self.writer.missing()

    def first_not_added(self, shards: list[int]) -> int | None:
        """Find the first row in some shards that was not added; None: all were."""
        rows = (row for index in shards for row in range(*self.plan.shard_rows(index)))
        return next((row for row in rows if not self._added[row]), None)

    def _shard_of(self, row: int) -> int:
        return row // int(self.plan.boundaries[1])

    def _is_full(self, index: int) -> bool:
        first, stop = self.plan.shard_rows(index)
        return len(self._pending[index]) == stop - first


def digest_of(dataset: str, rows: int) -> str:
    """Identify the data by what the caller says of them: they are not known before they come."""
    return hashlib.sha256(canonical_json({"created": dataset, "rows": rows})).hexdigest()
