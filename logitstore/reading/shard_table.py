"""List the shards of a store and what each one holds, without opening them.

A finished store has an index of its shards; in an unfinished one, the same is read from the ends of
the shards (`shard_head.py`). The number of sequences in each shard gives the place of sequence i.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from logitstore.errors import CorruptStoreError, StorageError
from logitstore.format.index import read_index
from logitstore.format.numpy_types import I64
from logitstore.format.seal import read_seal
from logitstore.format.spec import (
    DONE_FILE,
    INDEX_FILE,
    SHARDS_FOLDER,
    SPEC_FILE,
    Plan,
    StoreHeader,
    StoreSpec,
    shard_name,
)
from logitstore.reading.bucket import kept_array
from logitstore.reading.listing import list_shards
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import ShardCache
from logitstore.reading.shard_head import Skimmed, index_line
from logitstore.reading.threads import for_each
from logitstore.storage.paths import StorePath

T = TypeVar("T")


class ShardTable:
    """The shards of one store, as they are at the moment when it is opened.

    Attributes:
        path: The store's folder, or its address in a bucket.
        spec: The store's.
        plan: The store's.
        is_complete: Whether the capture finished.
        numbers: The numbers of the shards that exist, ascending.
    """

    def __init__(self, path: StorePath, spec: StoreSpec, plan: Plan, cache: ShardCache) -> None:
        """List the shards.

        Args:
            path: The store's folder, or its address in a bucket.
            spec: The store's.
            plan: The store's.
            cache: Where arrays of a store in a bucket are kept.

        Raises:
            CorruptStoreError: A shard of a finished store is missing.
            NotAStoreError: There is no folder of shards.
        """
        self.path, self.spec, self.plan, self._cache = path, spec, plan, cache
        self.is_complete = (path / DONE_FILE).exists()  # first: it may be sealed while we look
        if self.is_complete and path.is_remote:
            self.numbers = list(range(plan.shard_count))  # the index lists them all
        else:
            self.numbers = list_shards(path, plan)
        self._position = {index: position for position, index in enumerate(self.numbers)}
        if self.is_complete:
            self._check_complete()

    def check_header(self, header: StoreHeader) -> None:
        """Compare `store.json` with the seal, which pins its provenance, too.

        Raises:
            CorruptStoreError: It is not the one that was sealed, or the seal cannot be used.
        """
        if not self.is_complete:
            return
        digest = hashlib.sha256(header.to_bytes()).hexdigest()
        if digest != self._sealed[SPEC_FILE]:
            path = self.path / SPEC_FILE
            raise CorruptStoreError(
                f"{path}: is not the one that the store was sealed with (SHA-256 {digest[:12]}…, "
                f"{DONE_FILE} says {self._sealed[SPEC_FILE][:12]}…). Restore the file from a copy; "
                "the shards beside it are still good.",
                path=path,
            )

    @cached_property
    def _sealed(self) -> dict[str, str]:
        """The digests of files by name, from the seal of a finished store."""
        try:
            return read_seal(self.path, self.spec)
        except StorageError:
            raise
        except (OSError, ValueError) as e:
            raise _cannot_be_used(self.path, self.path / DONE_FILE, e) from None

    def path_of(self, index: int) -> StorePath:
        """Name the file or object of a shard."""
        return self.path / SHARDS_FOLDER / shard_name(index)

    def position(self, index: int) -> int:
        """Find a shard's place among those that exist."""
        return self._position[index]

    @property
    def rows_held(self) -> int:
        """The number of dataset rows in the shards that exist."""
        return sum(stop - start for start, stop in map(self.plan.shard_rows, self.numbers))

    @property
    def digest(self) -> str:
        """SHA-256 of the content settings and of the plan, in hex."""
        return hashlib.sha256(f"{self.spec.digest}{self.plan.digest}".encode()).hexdigest()

    @cached_property
    def facts(self) -> list[dict[str, Any]]:
        """The index: one dict a shard (rows, counts, bytes, digest, fidelity)."""
        if self.is_complete:
            return _indexed(self.path, self._sealed[INDEX_FILE], self.plan)
        return self.for_each_shard(lambda i: index_line(self.skim(i), i))

    def fact(self, index: int) -> dict[str, Any]:
        """Look up the index's line of one shard."""
        return self.facts[self._position[index]]

    def digest_and_size(self, index: int) -> tuple[str, int]:
        """Look up the SHA-256 of a shard, and its size in bytes."""
        fact = self.fact(index)
        return str(fact["sha256"]), int(fact["file_bytes"])

    @cached_property
    def first_sequence(self) -> I64:
        """(shards + 1,) the number of sequences before each shard, and their total."""
        counts = [int(f["sequences"]) for f in self.facts]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def find_sequence(self, i: int) -> tuple[int, int]:
        """Find sequence i: the number of its shard, and its place in there.

        Raises:
            IndexError: There is no such sequence.
        """
        total = int(self.first_sequence[-1])
        if i < 0:
            i += total
        if not 0 <= i < total:
            raise IndexError(f"{self.path} has {total} sequences, there is no number {i}")
        position = int(np.searchsorted(self.first_sequence, i, side="right")) - 1
        return self.numbers[position], i - int(self.first_sequence[position])

    def shards_of(self, sequences: Iterable[int]) -> list[int]:
        """List the shards of sequences, in the order asked for; unknown sequences are ignored."""
        total = int(self.first_sequence[-1])
        inside = [i for i in (i + total * (i < 0) for i in sequences) if 0 <= i < total]
        positions = np.searchsorted(self.first_sequence, inside, side="right") - 1
        return [self.numbers[p] for p in dict.fromkeys(positions.tolist())]

    def shard_of_row(self, r: int) -> int:
        """Find the shard of dataset row r.

        Raises:
            IndexError: The dataset has no such row, or its shard is not written yet.
        """
        index = bisect_right(self.plan.boundaries, r) - 1
        if not 0 <= r < self.plan.rows or index not in self._position:
            raise IndexError(f"row {r} is not in {self.path}, which holds {self.rows_held} rows")
        return index

    @cached_property
    def token_counts(self) -> I64:
        """(sequences,) records of each sequence."""
        return self._of_each_sequence("records", lambda i: self.checked_skim(i).token_counts)

    @cached_property
    def sequence_rows(self) -> I64:
        """(sequences,) the dataset row of each sequence."""
        return self._of_each_sequence("rows", lambda i: self.checked_skim(i).sequence_rows)

    def for_each_shard(self, read: Callable[[int], T]) -> list[T]:
        """Call a function with the number of every shard; of a bucket, of several at once."""
        return for_each(self.numbers, read, at_once=self.path.is_remote)

    def skim(self, index: int) -> Skimmed:
        """Read the end of a shard."""
        known = self.digest_and_size(index)[1] if self.is_complete else None
        return Skimmed(self.path_of(index), self.spec, self.plan, index, known)

    def checked_skim(self, index: int) -> Skimmed:
        """Read the end of a shard, and check it against the index, if there is one."""
        skimmed = self.skim(index)
        self.check(skimmed, index)
        return skimmed

    def check(self, shard: Shard | Skimmed, index: int) -> None:
        """Check a shard against the index, if there is one.

        Raises:
            CorruptStoreError: It is not the one that the store was sealed with.
        """
        if not self.is_complete:
            return
        fact = self.fact(index)
        if (shard.archive.digest, shard.size.sequences) != (fact["sha256"], fact["sequences"]):
            raise CorruptStoreError(
                f"{shard.path}: the file is not the one this store was sealed with (SHA-256 "
                f"{shard.archive.digest[:12]}…, the index says {fact['sha256'][:12]}…). Restore it "
                f"from a copy, or run `logitstore repair {self.path}` to redo it.",
                path=shard.path,
                rows=(fact["first_row"], fact["stop_row"] - 1),
            )

    def _of_each_sequence(self, name: str, read: Callable[[int], I64]) -> I64:
        """Join an array of every shard; for a bucket it is kept on the local disk.

        Every process of every run asks for it, and it costs a request or two a shard.
        """

        def read_all() -> I64:
            parts = self.for_each_shard(read)
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)

        if not self.path.is_remote:
            return read_all()
        digests = "".join(str(f["sha256"]) for f in self.facts)
        total = int(self.first_sequence[-1])
        return kept_array(self._cache, f"{name}-{self.digest}-{digests}", total, read_all)

    def _check_complete(self) -> None:
        lost = sorted(set(range(self.plan.shard_count)) - set(self.numbers))
        if lost:
            first, stop = self.plan.shard_rows(lost[0])
            raise CorruptStoreError(
                f"{self.path_of(lost[0])}: the file is missing, with rows {first:,} to "
                f"{stop - 1:,} ({len(lost)} of {self.plan.shard_count} shards are). Restore it "
                f"from a copy, or run `logitstore repair {self.path}` to redo it.",
                path=self.path_of(lost[0]),
                rows=(first, stop - 1),
                kind="missing-file",
            )


def _indexed(store: StorePath, sealed: str, plan: Plan) -> list[dict[str, Any]]:
    """Read the index of a finished store, checked against its seal."""
    path = store / INDEX_FILE
    try:
        return read_index(path, sealed, plan)
    except StorageError:
        raise
    except (OSError, ValueError) as e:
        raise _cannot_be_used(store, path, e) from None


def _cannot_be_used(store: StorePath, path: StorePath, why: Exception) -> CorruptStoreError:
    return CorruptStoreError(
        f"{path}: {why}. Every shard may still be good: `logitstore repair {store}` "
        "checks them, and rebuilds index and seal.",
        path=path,
    )
