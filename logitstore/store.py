"""Reading a store: a folder of shards as one sequence of records.

    store = open_store("my-store")
    records = store[0]              # TokenRecords: numpy arrays
    text = store.text(0)            # SequenceText

Opening reads `store.json`, one listing, and (of a finished store) the index. Shards are mapped when
first read, a bounded number at a time, in each process for itself: a store may be pickled to, or
forked into, data loader workers. Every byte that is returned has passed a checksum.
"""

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitstore.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    NotAStoreError,
    StorageError,
)
from logitstore.index import index_line, read_index
from logitstore.records import SequenceText, TokenRecords
from logitstore.seal import read_seal
from logitstore.shard import Shard, shard_name
from logitstore.spec import (
    DONE_FILE,
    INDEX_FILE,
    SHARDS_FOLDER,
    TOKENIZER_FOLDER,
    Plan,
    StoreHeader,
    StoreSpec,
)

_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Fidelity:
    """How exact the store is, measured when it was written, over all of its records.

    Attributes:
        tail_mean: Mean probability outside the entries.
        tail_p99: The largest of the shards' 99th percentiles of it.
        at_cap_fraction: Records that kept top_k entries and still have more tail than asked for.
        entries_mean: Entries a record.
        kl_mean: KL(exact || decoded) over entries and tail, nats.
        l1_mean: L1 distance of the same; what quantisation adds to a ULD, on average.
        l1_max: The largest L1 of any record: a bound for any loss that is 1-Lipschitz in L1.
        dropped_entries: Too improbable for the code, left out.
    """

    tail_mean: float
    tail_p99: float
    at_cap_fraction: float
    entries_mean: float
    kl_mean: float
    l1_mean: float
    l1_max: float
    dropped_entries: int


def open_store(path: str | os.PathLike[str], *, allow_partial: bool = False) -> "LogitStore":
    """Open a store for reading.

    Args:
        path: The store's folder.
        allow_partial: Read what an unfinished capture has committed so far, frozen at this moment.

    Raises:
        NotAStoreError: There is no store at this path.
        FormatError: It is of a newer format version.
        IncompleteStoreError: The capture has not finished, and `allow_partial` is off.
        CorruptStoreError: Files are missing or not what was committed.
    """
    return LogitStore(Path(path), allow_partial=allow_partial)


class LogitStore:
    """A store, opened by `open_store`. Indexing gives the records of a sequence.

    Attributes:
        path: The folder.
        spec: What the records mean.
        plan: Which rows are in which shard.
        provenance: Names and paths of how it was made; for people, not checked.
        is_complete: Whether the capture finished.
        shards: Numbers of the shards that can be read.
    """

    def __init__(self, path: Path, *, allow_partial: bool = False) -> None:
        self.path = path
        header = StoreHeader.read(path)
        self.spec: StoreSpec = header.spec
        self.plan: Plan = header.plan
        self.provenance = header.provenance
        self.is_complete = (path / DONE_FILE).exists()  # first: it may be sealed while we look
        self.shards = self._list_shards()
        self._open: OrderedDict[int, Shard] = OrderedDict()
        if self.is_complete:
            self._check_complete()
        elif not allow_partial:
            raise IncompleteStoreError(
                f"{path}: holds {self.rows_held:,} of {self.plan.rows:,} rows; the capture has not "
                "finished. Run the same `logitstore capture …` again to resume it, or use what is "
                "there with --allow-partial."
            )

    def __len__(self) -> int:
        return int(self._first_sequence[-1])

    def __getitem__(self, i: int) -> TokenRecords:
        """The records of sequence i; of length 0 where the row yielded none.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged; other sequences may still be whole.
        """
        shard, place = self._locate(i)
        return shard.records(place)

    def __iter__(self) -> Iterator[TokenRecords]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "unfinished"
        return f"LogitStore({str(self.path)!r}, {len(self):,} sequences, {state})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # maps do not travel between processes

    def read_many(self, indices: Iterable[int]) -> list[TokenRecords]:
        """The records of several sequences, in the order asked for."""
        wanted = list(indices)
        found = {i: self[i] for i in sorted(set(wanted))}  # a shard after the other
        return [found[i] for i in wanted]

    def text(self, i: int) -> SequenceText:
        """The text of sequence i and where it comes from.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged.
        """
        shard, place = self._locate(i)
        return shard.text(place)

    def row(self, r: int) -> list[int]:
        """The sequences that are the parts of dataset row r, in order.

        Raises:
            IndexError: The dataset has no such row, or its shard is not written yet.
        """
        index = bisect_right(self.plan.boundaries, r) - 1
        if not 0 <= r < self.plan.rows or index not in self._position:
            raise IndexError(f"row {r} is not in {self.path}, which holds {self.rows_held} rows")
        position = self._position[index]
        first = int(self._first_sequence[position])
        return [first + int(i) for i in np.flatnonzero(self._shard(index).sequence_rows() == r)]

    @property
    def rows_held(self) -> int:
        """Dataset rows in the shards that are there."""
        return sum(stop - start for start, stop in map(self.plan.shard_rows, self.shards))

    @property
    def tokenizer_path(self) -> Path:
        """Folder of the teacher's tokenizer."""
        return self.path / TOKENIZER_FOLDER

    @property
    def digest(self) -> str:
        """Identifies what the store holds: same digest, same content settings and rows."""
        return hashlib.sha256(f"{self.spec.digest}{self.plan.digest}".encode()).hexdigest()

    def largest_tail(self, index: int) -> float:
        """The most probability that any record of a shard leaves outside its entries.

        Raises:
            CorruptStoreError: The shard is damaged.
        """
        return self._shard(index).largest_tail()

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """Records of each sequence."""
        parts = [np.diff(self._shard(i).record_offsets) for i in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @cached_property
    def sequence_rows(self) -> npt.NDArray[np.int64]:
        """The dataset row of each sequence."""
        parts = [self._shard(i).sequence_rows() for i in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @cached_property
    def shard_facts(self) -> list[dict[str, Any]]:
        """The index: one dict a shard (rows, counts, bytes, digest, fidelity)."""
        if self.is_complete:
            return self._read_index()
        return [index_line(self._shard(i), i) for i in self.shards]

    @cached_property
    def fidelity(self) -> Fidelity:
        """How exact the store is."""
        facts = self.shard_facts
        weights = np.array([f["records"] for f in facts], np.float64)
        total = max(weights.sum(), 1.0)

        def mean(name: str) -> float:
            return float(sum(w * f[name] for w, f in zip(weights, facts, strict=True)) / total)

        def largest(name: str) -> float:
            return float(max((f[name] for f in facts), default=0.0))

        return Fidelity(
            tail_mean=mean("tail_mean"),
            tail_p99=largest("tail_p99"),
            at_cap_fraction=mean("at_cap_fraction"),
            entries_mean=mean("entries_mean"),
            kl_mean=mean("kl_mean"),
            l1_mean=mean("l1_mean"),
            l1_max=largest("l1_max"),
            dropped_entries=sum(int(f["dropped_entries"]) for f in facts),
        )

    @cached_property
    def _position(self) -> dict[int, int]:
        return {index: position for position, index in enumerate(self.shards)}

    @cached_property
    def _first_sequence(self) -> npt.NDArray[np.int64]:
        counts = [int(f["sequences"]) for f in self.shard_facts]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def _locate(self, i: int) -> tuple[Shard, int]:
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path} has {len(self)} sequences, there is no number {i}")
        position = int(np.searchsorted(self._first_sequence, i, side="right")) - 1
        return self._shard(self.shards[position]), i - int(self._first_sequence[position])

    def _shard(self, index: int) -> Shard:
        shard = self._open.get(index)
        if shard is None:
            shard = Shard(self._shard_path(index), self.spec, self.plan, index)
            if self.is_complete:
                self._check_indexed(shard, index)
            self._open[index] = shard
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(index)
        return shard

    def _shard_path(self, index: int) -> Path:
        return self.path / SHARDS_FOLDER / shard_name(index)

    def _list_shards(self) -> list[int]:
        try:
            there = set(os.listdir(self.path / SHARDS_FOLDER))
        except (FileNotFoundError, NotADirectoryError):
            raise NotAStoreError(
                f"{self.path}: has a store.json but no {SHARDS_FOLDER}/ folder. Copy the whole "
                "store, or run the same `logitstore capture …` again."
            ) from None
        except OSError as e:
            raise StorageError(
                f"{self.path / SHARDS_FOLDER}: cannot be read ({e.strerror}). Mend that first."
            ) from e
        return [i for i in range(self.plan.shard_count) if shard_name(i) in there]

    def _check_complete(self) -> None:
        lost = sorted(set(range(self.plan.shard_count)) - set(self.shards))
        if lost:
            first, stop = self.plan.shard_rows(lost[0])
            raise CorruptStoreError(
                f"{self._shard_path(lost[0])}: the file is missing, with rows {first:,} to "
                f"{stop - 1:,} ({len(lost)} of {self.plan.shard_count} shards are). Restore it "
                f"from a copy, or run `logitstore repair {self.path}` to redo it.",
                path=self._shard_path(lost[0]),
                rows=(first, stop - 1),
            )

    def _check_indexed(self, shard: Shard, index: int) -> None:
        fact = self.shard_facts[self._position[index]]
        if (shard.archive.digest, len(shard)) != (fact["sha256"], fact["sequences"]):
            raise CorruptStoreError(
                f"{shard.path}: the file is not the one this store was sealed with (SHA-256 "
                f"{shard.archive.digest[:12]}…, the index says {fact['sha256'][:12]}…). Restore it "
                f"from a copy, or run `logitstore repair {self.path}` to redo it.",
                path=shard.path,
                rows=(fact["first_row"], fact["stop_row"] - 1),
            )

    def _read_index(self) -> list[dict[str, Any]]:
        path = self.path / DONE_FILE
        try:
            sealed = read_seal(self.path, self.spec)[INDEX_FILE]
            path = self.path / INDEX_FILE
            return read_index(path, sealed, self.plan)
        except (OSError, ValueError) as e:
            raise CorruptStoreError(
                f"{path}: {e}. Every shard may still be good: `logitstore repair {self.path}` "
                "checks them, and rebuilds index and seal.",
                path=path,
            ) from None
