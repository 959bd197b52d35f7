"""List the shards of a store and what each one holds, without opening them.

A finished store has an index of its shards; in an unfinished one, the same is read from the ends of
the shards (`shard_head.py`). The number of sequences in each shard gives the place of sequence i.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from logitstore.console.argument_types import whole_number
from logitstore.console.progress import progress
from logitstore.errors import CorruptStoreError, StorageError
from logitstore.format.index import Line, Lines
from logitstore.format.index_columns import PLACE, digests_of, numbers_of
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
from logitstore.reading.index_file import MOST_KEPT, IndexFile, cannot_be_used
from logitstore.reading.listing import list_shards
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import ShardCache
from logitstore.reading.shard_ends import (
    RECORDS,
    ROWS,
    WORTH_PROCESSES,
    blocks_of,
    read_blocks,
    shards_of,
)
from logitstore.reading.shard_head import Skimmed, index_line
from logitstore.reading.threads import for_each
from logitstore.storage.kept_arrays import kept_array
from logitstore.storage.paths import StorePath

T = TypeVar("T")

#: Shards of a finished store that are listed when it is opened. A listing of two million takes
#: seconds, and minutes on a network's file system; a shard that is missing is then an error, with
#: the same words, when it is first read.
MOST_LISTED = 100_000
_FOUND_AGAIN = ("token_counts", "sequence_rows", "_pinned", "_all_facts")


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
            cache: Where arrays are kept.

        Raises:
            CorruptStoreError: A shard of a finished store is missing. In a bucket, or of more than
                `MOST_LISTED`, it is missed when it is first read.
            NotAStoreError: There is no folder of shards.
        """
        self.path, self.spec, self.plan, self._cache = path, spec, plan, cache
        self.is_complete = (path / DONE_FILE).exists()  # first: it may be sealed while we look
        self.numbers: Sequence[int] = range(plan.shard_count)  # the index lists them all
        if not self.is_complete:
            self.numbers = list_shards(path, plan)
        elif not path.is_remote and plan.shard_count <= MOST_LISTED:
            self._check_complete(list_shards(path, plan))

    def __getstate__(self) -> dict[str, Any]:
        # What is kept in the cache is found there again, and mapped: it need not be sent.
        return {name: value for name, value in self.__dict__.items() if name not in _FOUND_AGAIN}

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
            raise cannot_be_used(self.path, self.path / DONE_FILE, e) from None

    def path_of(self, index: int) -> StorePath:
        """Name the file or object of a shard."""
        return self.path / SHARDS_FOLDER / shard_name(index)

    def position(self, index: int) -> int:
        """Find a shard's place among those that exist.

        Raises:
            KeyError: It is not there.
        """
        if self.is_complete:
            return index
        position = bisect_left(self.numbers, index)
        if position == len(self.numbers) or self.numbers[position] != index:
            raise KeyError(index)
        return position

    @property
    def rows_held(self) -> int:
        """The number of dataset rows in the shards that exist."""
        if self.is_complete:
            return self.plan.rows
        return sum(stop - start for start, stop in map(self.plan.shard_rows, self.numbers))

    @property
    def digest(self) -> str:
        """SHA-256 of the content settings and of the plan, in hex."""
        return hashlib.sha256(f"{self.spec.digest}{self.plan.digest}".encode()).hexdigest()

    @cached_property
    def index(self) -> IndexFile:
        """The index of a finished store, of which columns are read when they are needed."""
        return IndexFile(self.path, self._sealed[INDEX_FILE], self.plan, self._cache)

    @property
    def facts(self) -> Sequence[Line]:
        """The index: one dict a shard (rows, counts, bytes, digest, fidelity)."""
        return self._all_facts if self.is_complete else self._skimmed_facts

    @cached_property
    def _all_facts(self) -> Lines:
        return Lines(self.index.columns())

    @cached_property
    def _skimmed_facts(self) -> list[dict[str, Any]]:
        return self.for_each_shard(lambda i: index_line(self.skim(i), i))

    @property
    def stored_bytes(self) -> int:
        """The bytes of all shards."""
        if self.is_complete:
            return int(self._pinned[:, 4].sum())
        return sum(int(each["file_bytes"]) for each in self.facts)

    def digest_and_size(self, index: int) -> tuple[str, int]:
        """Look up the SHA-256 of a shard, and its size in bytes."""
        if self.is_complete:
            line = self._pinned[index]
            return line[:4].astype("<i8").tobytes().hex(), int(line[4])
        fact = self.facts[self.position(index)]
        return str(fact["sha256"]), int(fact["file_bytes"])

    @cached_property
    def _pinned(self) -> I64:
        """(shards, 5) of a finished store: the 32 bytes of each digest, and its size in bytes.

        Of many shards they are kept in the cache, and mapped: to decode two million digests takes
        seconds and half a gigabyte.
        """
        count = self.plan.shard_count

        def parts() -> Iterator[I64]:
            for table in self.index.groups((*PLACE, "sha256", "file_bytes")):
                try:
                    digests = digests_of(table).view("<i8").astype(np.int64)
                except ValueError as e:
                    raise cannot_be_used(self.path, self.index.path, e) from None
                sizes = numbers_of(table, "file_bytes")
                yield np.concatenate([digests, sizes[:, None]], axis=1).reshape(-1)

        if count <= MOST_KEPT:
            return np.concatenate(list(parts())).reshape(-1, 5)
        name = f"shards-{self.digest}-{self._sealed[INDEX_FILE]}"
        return kept_array(self._cache.folder, name, 5 * count, parts).reshape(-1, 5)

    @cached_property
    def first_sequence(self) -> I64:
        """(shards + 1,) the number of sequences before each shard, and their total."""
        first = np.zeros(len(self.numbers) + 1, np.int64)
        if self.is_complete:
            held = 0
            for part in self.index.groups(("sequences",)):
                stop = held + part.num_rows
                np.cumsum(numbers_of(part, "sequences"), out=first[held + 1 : stop + 1])
                first[held + 1 : stop + 1] += first[held]
                held = stop
        else:
            np.cumsum([int(f["sequences"]) for f in self.facts], out=first[1:])
        # Mostly a row is a sequence: then the plan has this array, and it is not kept twice.
        return self.plan.boundaries if np.array_equal(first, self.plan.boundaries) else first

    def sequences_of(self, index: int) -> int:
        """Count the sequences of a shard."""
        position = self.position(index)
        return int(self.first_sequence[position + 1] - self.first_sequence[position])

    def find_sequence(self, i: int) -> tuple[int, int]:
        """Find sequence i: the number of its shard, and its place in there.

        Raises:
            IndexError: There is no such sequence.
        """
        total = int(self.first_sequence[-1])
        i = whole_number(i, f"{self.path}: a sequence", total)
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
        r = whole_number(r, f"{self.path}: a row", self.plan.rows)
        index = self.plan.shard_of_row(r)
        try:
            if 0 <= r < self.plan.rows:
                self.position(index)
                return index
        except KeyError:
            pass
        raise IndexError(f"row {r} is not in {self.path}, which holds {self.rows_held} rows")

    @cached_property
    def token_counts(self) -> I64:
        """(sequences,) records of each sequence."""
        return self._of_each_sequence(RECORDS, lambda i: self.checked_skim(i).token_counts)

    @cached_property
    def sequence_rows(self) -> I64:
        """(sequences,) the dataset row of each sequence."""
        if self.first_sequence is self.plan.boundaries and self.is_complete:
            return np.arange(self.plan.rows, dtype=np.int64)
        return self._of_each_sequence(ROWS, lambda i: self.checked_skim(i).sequence_rows)

    def for_each_shard(self, read: Callable[[int], T]) -> list[T]:
        """Call a function with the number of every shard; of a bucket, of several at once."""
        return for_each(self.numbers, read, at_once=self.path.is_remote)

    def skim(self, index: int) -> Skimmed:
        """Read the end of a shard."""
        # A file's own size costs nothing, and says that it was cut off.
        is_known = self.is_complete and self.path.is_remote
        known = self.digest_and_size(index)[1] if is_known else None
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
        digest, _ = self.digest_and_size(index)
        if (shard.archive.digest, shard.size.sequences) != (digest, self.sequences_of(index)):
            first, stop = self.plan.shard_rows(index)
            raise CorruptStoreError(
                f"{shard.path}: the file is not the one this store was sealed with (SHA-256 "
                f"{shard.archive.digest[:12]}…, the index says {digest[:12]}…). Restore it "
                f"from a copy, or run `logitstore repair {self.path}` to redo it.",
                path=shard.path,
                rows=(first, stop - 1),
            )

    def _of_each_sequence(self, what: str, read: Callable[[int], I64]) -> I64:
        """Join an array of every shard; what takes long is kept on the local disk, and mapped."""
        if not (self.path.is_remote or self._is_long):
            parts = self.for_each_shard(read)
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)
        pinned = (
            self._sealed[INDEX_FILE]  # which has the digests of all shards
            if self.is_complete
            else "".join(str(f["sha256"]) for f in self.facts)
        )
        name, total = f"{what}-{self.digest}-{pinned}", int(self.first_sequence[-1])
        return kept_array(self._cache.folder, name, total, lambda: self._parts(what, read))

    def _parts(self, what: str, read: Callable[[int], I64]) -> Iterator[I64]:
        """Yield an array of every shard, some shards at a time."""
        if not self._is_long:
            yield from self.for_each_shard(read)
            return
        count, cache = self.plan.shard_count, self._cache.folder

        def of_block(block: int) -> bytes:
            parts = for_each(shards_of(block, count), read, at_once=self.path.is_remote)
            return np.concatenate(parts).astype("<i8").tobytes()

        found = read_blocks(self.path, what, blocks_of(count), of_block, cache=cache)
        with progress(count, "count", "shards") as shown:
            for block, data in enumerate(found):
                yield np.frombuffer(data, "<i8")
                shown.update(len(shards_of(block, count)))

    @property
    def _is_long(self) -> bool:
        """Tell whether reading the ends of all shards is worth processes of its own."""
        return self.is_complete and self.plan.shard_count >= WORTH_PROCESSES

    def _check_complete(self, found: Sequence[int]) -> None:
        lost = sorted(set(range(self.plan.shard_count)) - set(found))
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
