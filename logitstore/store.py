"""Read a store: a folder (or a bucket) of shards, as one sequence of records.

    store = open_store("my-store")
    records = store[0]              # TokenRecords: numpy arrays
    text = store.text(0)            # SequenceText

What happens on `store[i]`, room by room:

1. `shard_table.py` finds the shard that sequence i lies in, and its place in there. It knows how
   many sequences each shard has from the index, read once, or from the shards' ends.
2. `open_shards.py` hands out the shard. Opened for the first time, its file is mapped (`s3://…`:
   fetched whole into a cache that all processes of the machine share), and held to the digest in
   the index. A bounded number stays open.
3. `shard.py`, on opening, checks every header: the zip directory, what the shard says of itself,
   and each array's metadata and chunk index. No chunk is decoded yet.
4. `sequences.py` looks up where the sequence lies among the shard's records, entries and draws,
   decodes only the chunks that it touches (each has a checksum), and undoes the distances.
5. `fields.py` turns codes into log-probabilities: head and tail of each record sum to one again.

Opening reads `store.json`, one listing and (of a finished store) the index; maps and threads are
made in each process for itself, so a store may be pickled to, or forked into, data loader workers.
Every byte that is returned has passed a checksum; bytes that do not are an error which names the
row, and nothing is returned in their place.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from logitstore.errors import IncompleteStoreError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.numpy_types import I64
from logitstore.format.spec import Plan, StoreHeader, StoreSpec
from logitstore.info import Fidelity, facts, info_text
from logitstore.reading.bucket import tokenizer_folder
from logitstore.reading.open_shards import OpenShards
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import ShardCache
from logitstore.reading.shard_head import Skimmed
from logitstore.reading.shard_table import ShardTable
from logitstore.records import Entries, SequenceText, TokenRecords
from logitstore.storage.paths import StorePath, store_path

if TYPE_CHECKING:
    import zarr

T = TypeVar("T")


def open_store(
    path: str | os.PathLike[str] | StorePath,
    *,
    allow_partial: bool = False,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
) -> "LogitStore":
    """Open a store for reading.

    Args:
        path: The store's folder, or its URL (`s3://…`, `hf://…`, whatever fsspec reads).
        allow_partial: Read what an unfinished capture has committed so far, frozen at this moment.
        cache: Of a URL: the folder for shards that were fetched. Default: `$LOGITSTORE_CACHE`, or
            `~/.cache/logitstore`.
        cache_bytes: What it may hold; least recently used shards go first. Default:
            `$LOGITSTORE_CACHE_BYTES`, or 64 GiB.

    Raises:
        NotAStoreError: There is no store at this path.
        FormatError: It is of a newer format version.
        IncompleteStoreError: The capture has not finished, and `allow_partial` is off.
        CorruptStoreError: Files are missing or not what was committed.
        StorageError: The bucket refuses: credentials, network, address.
        InputError: A URL of a kind for which a package is missing, or that cannot be a store.
    """
    chosen = ShardCache.chosen(cache, cache_bytes)
    return LogitStore(path, allow_partial=allow_partial, cache=chosen)


class LogitStore:
    """A store, opened by `open_store`. Indexing gives the records of a sequence.

    Attributes:
        path: The folder, or the address in a bucket.
        spec: What the records mean.
        plan: Which rows are in which shard.
        provenance: Names and paths of how it was made; for people, not checked.
        is_complete: Whether the capture finished.
        shards: Numbers of the shards that can be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | StorePath,
        *,
        allow_partial: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        self.path = path = store_path(path)
        self.cache = cache or ShardCache.chosen()
        header = StoreHeader.read(path)
        self.spec: StoreSpec = header.spec
        self.plan: Plan = header.plan
        self.provenance = header.provenance
        self._table = ShardTable(path, self.spec, self.plan, self.cache)
        self._shards = OpenShards(self._table, self.cache)
        self.is_complete, self.shards = self._table.is_complete, self._table.numbers
        if not self.is_complete and not allow_partial:
            raise IncompleteStoreError(
                f"{path}: holds {self.rows_held:,} of {self.plan.rows:,} rows; the capture has not "
                "finished. Run the same `logitstore capture …` again to resume it, or use what is "
                "there with --allow-partial."
            )

    def __len__(self) -> int:
        return int(self._table.first_sequence[-1])

    def _repr_html_(self) -> str:
        """Show `logitstore info` in a notebook."""
        from logitstore.console.notebook import text_html

        return text_html(info_text(facts(self)))

    def __getitem__(self, i: int) -> TokenRecords:
        """The records of sequence i; of length 0 where the row yielded none.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged; other sequences may still be whole.
        """
        return self._read(i, Shard.records)

    def __iter__(self) -> Iterator[TokenRecords]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "unfinished"
        return f"LogitStore({str(self.path)!r}, {len(self):,} sequences, {state})"

    def read_many(self, indices: Iterable[int]) -> list[TokenRecords]:
        """The records of several sequences, in the order asked for; faster than one at a time.

        Sequences of a shard are decoded together, no chunk twice, and a larger number on several
        cores (but not in a process that multiprocessing started, such as a data loader's). Arrays
        are slices of the same memory, which stays as long as any of them does.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Bytes of one of them are damaged.
        """
        asked = list(indices)
        self.fetch_ahead(asked)
        return self._shards.read_many([self.locate(i) for i in asked])

    def entries(self, i: int) -> Entries:
        """The entries of sequence i without the rest of its records: half of the work.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Bytes it needs are damaged.
        """
        return self._read(i, Shard.entries)

    def text(self, i: int) -> SequenceText:
        """The text of sequence i and where it comes from.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged.
        """
        return self._read(i, Shard.text)

    def encoded(self, i: int) -> EncodedRecords:
        """Sequence i as it is stored, to be stored again without any change.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged.
        """
        return self._read(i, Shard.encoded)

    def shard(self, index: int) -> Shard:
        """Shard number `index`, checked as far as opening it does.

        Raises:
            CorruptStoreError: It is damaged.
        """
        return self._shards.opened(index)

    def locate(self, i: int) -> tuple[int, int]:
        """Find sequence i: the number of its shard, and its place in there.

        Raises:
            IndexError: There is no such sequence.
        """
        return self._table.find_sequence(i)

    def read_shard(self, index: int, read: Callable[[Shard], T]) -> T:
        """What `read` gives of a shard; once more where what failed can be put right.

        Raises:
            CorruptStoreError: It is damaged.
        """
        return self._shards.read_shard(index, read)

    @property
    def zarr(self) -> "zarr.Group":
        """The arrays of all shards as they are stored, as a read-only zarr group.

        One subgroup a shard: `store.zarr["00000/token_ids"][:]`. Bytes are checked before zarr
        sees them (see `zarr_view.py`); what they mean is in section 5 of FORMAT.md. Of a compact
        store, zarr warns that its codec (pcodec) is not in the zarr specification.

        Raises (what is read from the group, too):
            CorruptStoreError: Bytes are damaged, or decode to far more than is stored of them.
            MissingLibraryError: The store is compact, and pcodec is not installed.
            InputError: The group is written to.
        """
        from logitstore.reading.zarr_view import open_zarr

        return open_zarr(self)

    def row(self, r: int) -> list[int]:
        """The sequences that are the parts of dataset row r, in order.

        Raises:
            IndexError: The dataset has no such row, or its shard is not written yet.
        """
        index = self._table.shard_of_row(r)
        first = int(self._table.first_sequence[self._table.position(index)])
        return [first + int(i) for i in np.flatnonzero(self.shard(index).sequence_rows() == r)]

    def fetch_ahead(self, indices: Iterable[int]) -> None:
        """Of a store in a bucket: begin to fetch the shards of these sequences, and return.

        What was asked for before and has not begun is dropped. Of a folder: nothing to do.
        """
        self._shards.fetch_ahead(indices)

    @property
    def rows_held(self) -> int:
        """Dataset rows in the shards that are there."""
        return self._table.rows_held

    @property
    def tokenizer_path(self) -> Path:
        """Folder of the teacher's tokenizer; of a store in a bucket, a copy of it.

        Raises:
            CorruptStoreError: The object is not what was committed.
            StorageError: The object store, or the disk, refuses.
        """
        return tokenizer_folder(self.path, self.spec, self.cache)

    @property
    def digest(self) -> str:
        """Identifies what the store holds: same digest, same content settings and rows."""
        return self._table.digest

    def largest_tail(self, index: int) -> float:
        """The most probability that any record of a shard leaves outside its entries.

        Raises:
            CorruptStoreError: The shard is damaged.
        """
        return self.shard(index).largest_tail()

    @property
    def token_counts(self) -> I64:
        """Records of each sequence; a few kilobytes of every shard are read, once."""
        return self._table.token_counts

    @property
    def sequence_rows(self) -> I64:
        """The dataset row of each sequence; where rows have windows, the text's shards are read."""
        return self._table.sequence_rows

    @property
    def shard_facts(self) -> list[dict[str, Any]]:
        """The index: one dict a shard (rows, counts, bytes, digest, fidelity)."""
        return self._table.facts

    def skim(self, index: int) -> Skimmed:
        """Read what a shard says of itself from its last bytes, without fetching or mapping it.

        Raises:
            CorruptStoreError: It is not the shard that it must be.
        """
        return self._table.checked_skim(index)

    @cached_property
    def fidelity(self) -> Fidelity:
        """How exact the store is."""
        return Fidelity.of(self.shard_facts)

    def member_bytes(self) -> list[dict[str, int]]:
        """Count, for each shard, the bytes of each array and of the text."""
        return self._table.of_each(lambda i: self._table.skim(i).member_bytes())

    def _read(self, i: int, what: Callable[[Shard, int], T]) -> T:
        return self._shards.read_sequence(*self._table.find_sequence(i), what)
