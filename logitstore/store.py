"""Reading a store: a folder of shards as one sequence of records.

    store = open_store("my-store")
    records = store[0]              # TokenRecords: numpy arrays
    text = store.text(0)            # SequenceText

Opening reads `store.json`, one listing, and (of a finished store) the index. Shards are mapped when
first read, a bounded number at a time, in each process for itself: a store may be pickled to, or
forked into, data loader workers. Every byte that is returned has passed a checksum.

    store = open_store("s3://bucket/my-store")

The shards of a store in a bucket are fetched whole, when first read, into a cache that all
processes of a machine share (`shard_cache.py`); those to be read next are fetched on the side.
"""

import hashlib
import logging
import math
import multiprocessing
import os
import resource
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from logitstore.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    StorageError,
)
from logitstore.format.encoded import EncodedRecords
from logitstore.format.index import read_index
from logitstore.format.seal import read_seal
from logitstore.format.spec import (
    DONE_FILE,
    INDEX_FILE,
    SHARDS_FOLDER,
    TOKENIZER_FOLDER,
    Plan,
    StoreHeader,
    StoreSpec,
    shard_name,
)
from logitstore.info import Fidelity, facts, info_text
from logitstore.reading.bucket import BucketShards, following, kept_array, local_tokenizer
from logitstore.reading.listing import list_shards
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import LIMIT_VARIABLE, ShardCache
from logitstore.reading.shard_head import Skimmed, index_line
from logitstore.reading.threads import decode_parts, for_each
from logitstore.records import Entries, SequenceText, TokenRecords
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath, store_path

if TYPE_CHECKING:
    import zarr

log = logging.getLogger(__name__)

_OPEN_SHARDS = 64
_DECODED_TOGETHER = 16  # sequences: more save little and leave the processor's cache
_SPARE_BYTES = 64 * 1024 * 1024  # that maps leave below a limit of address space: decoding needs it

T = TypeVar("T")
Ints = npt.NDArray[np.int64]


def open_store(
    path: str | os.PathLike[str] | RemotePath,
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
    return LogitStore(store_path(path), allow_partial=allow_partial, cache=chosen)


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
        self, path: StorePath, *, allow_partial: bool = False, cache: ShardCache | None = None
    ) -> None:
        self.path = path
        self.cache = cache or ShardCache.chosen()
        header = StoreHeader.read(path)
        self.spec: StoreSpec = header.spec
        self.plan: Plan = header.plan
        self.provenance = header.provenance
        self.is_complete = (path / DONE_FILE).exists()  # first: it may be sealed while we look
        if self.is_complete and isinstance(path, RemotePath):
            self.shards = list(range(self.plan.shard_count))  # the index lists them all
        else:
            self.shards = list_shards(path, self.plan)
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._bucket: tuple[int, BucketShards] | None = None
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

    def __getstate__(self) -> dict[str, Any]:
        # Maps and threads do not travel between processes.
        return self.__dict__ | {"_open": OrderedDict(), "_bucket": None}

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
        wanted = [self._locate(i) for i in asked]
        parts: list[tuple[int, list[int]]] = []
        for index, group in groupby(sorted(set(wanted)), key=itemgetter(0)):
            places = [place for _, place in group]
            starts = range(0, len(places), _DECODED_TOGETHER)
            parts += [(index, places[start : start + _DECODED_TOGETHER]) for start in starts]
        decoded = self._decoded(parts)
        found: dict[tuple[int, int], TokenRecords] = {}
        for (index, places), records in zip(parts, decoded, strict=True):
            found |= {(index, place): r for place, r in zip(places, records, strict=True)}
        return [found[place] for place in wanted]

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
        return self._shard(index)

    def read_shard(self, index: int, read: Callable[[Shard], T]) -> T:
        """What `read` gives of a shard; once more where what failed can be put right.

        Raises:
            CorruptStoreError: It is damaged.
        """
        return self._read_at(index, 0, lambda shard, _: read(shard))

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
        index = bisect_right(self.plan.boundaries, r) - 1
        if not 0 <= r < self.plan.rows or index not in self._position:
            raise IndexError(f"row {r} is not in {self.path}, which holds {self.rows_held} rows")
        position = self._position[index]
        first = int(self._first_sequence[position])
        return [first + int(i) for i in np.flatnonzero(self._shard(index).sequence_rows() == r)]

    def fetch_ahead(self, indices: Iterable[int]) -> None:
        """Of a store in a bucket: begin to fetch the shards of these sequences, and return.

        What was asked for before and has not begun is dropped. Of a folder: nothing to do.
        """
        bucket = self._files()
        if bucket is not None:
            last, total = self._first_sequence, len(self)
            inside = [i + total * (i < 0) for i in indices]
            found = np.searchsorted(last, [i for i in inside if 0 <= i < total], side="right") - 1
            bucket.fetch_ahead(self.shards[p] for p in dict.fromkeys(found.tolist()))

    @property
    def rows_held(self) -> int:
        """Dataset rows in the shards that are there."""
        return sum(stop - start for start, stop in map(self.plan.shard_rows, self.shards))

    @property
    def tokenizer_path(self) -> Path:
        """Folder of the teacher's tokenizer; of a store in a bucket, a copy of it.

        Raises:
            CorruptStoreError: The object is not what was committed.
            StorageError: The object store, or the disk, refuses.
        """
        if isinstance(self.path, RemotePath):
            return local_tokenizer(self.path, self.spec, self.cache)
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
        """Records of each sequence; a few kilobytes of every shard are read."""
        return self._of_each_sequence("records", lambda i: self.skim(i).token_counts)

    @cached_property
    def sequence_rows(self) -> npt.NDArray[np.int64]:
        """The dataset row of each sequence; where rows have windows, the text's shards are read."""
        return self._of_each_sequence("rows", lambda i: self.skim(i).sequence_rows)

    @cached_property
    def shard_facts(self) -> list[dict[str, Any]]:
        """The index: one dict a shard (rows, counts, bytes, digest, fidelity)."""
        if self.is_complete:
            return self._read_index()
        return self._of_each_shard(lambda i: index_line(self._skim(i), i))

    def skim(self, index: int) -> Skimmed:
        """What a shard says of itself, from its last bytes, without fetching or mapping it.

        Raises:
            CorruptStoreError: It is not the shard that it must be.
        """
        skimmed = self._skim(index)
        if self.is_complete:
            self._check_indexed(skimmed, index)
        return skimmed

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

    def member_bytes(self) -> list[dict[str, int]]:
        """Of each shard: the bytes of each array, and of the text."""
        return self._of_each_shard(lambda i: self._skim(i).member_bytes())

    def _skim(self, index: int) -> Skimmed:
        known = self._fact(index)[1] if self.is_complete else None
        return Skimmed(self._shard_path(index), self.spec, self.plan, index, known)

    def _of_each_shard(self, what: Callable[[int], T]) -> list[T]:
        return for_each(self.shards, what, at_once=isinstance(self.path, RemotePath))

    def _of_each_sequence(self, name: str, what: Callable[[int], Ints]) -> Ints:
        """An array of all shards' arrays; of a bucket kept on the local disk, for it is asked for
        by every process of every run."""

        def read() -> Ints:
            parts = self._of_each_shard(what)
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)

        if not isinstance(self.path, RemotePath):
            return read()
        digests = "".join(str(f["sha256"]) for f in self.shard_facts)
        return kept_array(self.cache, f"{name}-{self.digest}-{digests}", len(self), read)

    def _decoded(self, parts: list[tuple[int, list[int]]]) -> list[list[TokenRecords]]:
        """Sequences of shards by their places, a few shards at a time: maps stay bounded."""
        found: list[list[TokenRecords]] = []
        for start in range(0, len(parts), _DECODED_TOGETHER):
            some = parts[start : start + _DECODED_TOGETHER]
            try:
                found += decode_parts([(self._shard(index), places) for index, places in some])
            except (MemoryError, CorruptStoreError):  # one at a time, what can be mended is
                found += [
                    [self._read_at(index, place, Shard.records) for place in places]
                    for index, places in some
                ]
        return found

    def _read(self, i: int, what: Callable[[Shard, int], T]) -> T:
        """Something of sequence i; once more where what failed can be put right."""
        return self._read_at(*self._locate(i), what)

    def _read_at(self, index: int, place: int, what: Callable[[Shard, int], T]) -> T:
        try:
            return what(self._shard(index), place)
        except MemoryError:  # maps count against a limit of address space, and one may be large
            if not self._open:
                raise
            self._open.clear()
        except CorruptStoreError:
            bucket = self._files()
            if bucket is None or not bucket.drop_if_damaged(index):
                raise
            self._open.pop(index, None)
        return what(self._shard(index), place)

    def _files(self) -> BucketShards | None:
        """Of a store in a bucket: how this process gets at its shards."""
        if not isinstance(self.path, RemotePath):
            return None
        if self._bucket is None or self._bucket[0] != os.getpid():
            self._bucket = (os.getpid(), BucketShards(self.path, self.cache, self._fact))
            if multiprocessing.parent_process() is None:
                self._say_if_larger_than_cache()
        return self._bucket[1]

    def _say_if_larger_than_cache(self) -> None:
        size, limit = sum(int(f["file_bytes"]) for f in self.shard_facts), self.cache.limit_bytes
        if size > limit:
            log.warning(
                "%s: %s bytes, of which the cache in %s keeps %s. Read in order, each shard is "
                "fetched once; in random order, as training does, again and again. If the disk has "
                "room, set %s to more.",
                self.path,
                f"{size:,}",
                self.cache.folder,
                f"{limit:,}",
                LIMIT_VARIABLE,
            )

    def _fact(self, index: int) -> tuple[str, int]:
        fact = self.shard_facts[self._position[index]]
        return str(fact["sha256"]), int(fact["file_bytes"])

    def _locate(self, i: int) -> tuple[int, int]:
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path} has {len(self)} sequences, there is no number {i}")
        position = int(np.searchsorted(self._first_sequence, i, side="right")) - 1
        return self.shards[position], i - int(self._first_sequence[position])

    def _shard(self, index: int) -> Shard:
        shard = self._open.get(index)
        if shard is None:
            shard = self._opened(index)
            if self.is_complete:
                self._check_indexed(shard, index)
            self._open[index] = shard
            while len(self._open) > 1 and (
                len(self._open) > _OPEN_SHARDS or spare_address_space() < _SPARE_BYTES
            ):
                self._open.popitem(last=False)
        self._open.move_to_end(index)
        return shard

    def _opened(self, index: int) -> Shard:
        path, bucket = self._shard_path(index), self._files()
        if bucket is None:
            return Shard(path, self.spec, self.plan, index)
        shard = Shard(path, self.spec, self.plan, index, bucket.open(index))
        position = self._position[index]
        if position == 0 or self.shards[position - 1] in self._open:  # read in order, it seems
            bucket.fetch_ahead(following(self.shards, position))
        return shard

    def _shard_path(self, index: int) -> StorePath:
        return self.path / SHARDS_FOLDER / shard_name(index)

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

    def _check_indexed(self, shard: Shard | Skimmed, index: int) -> None:
        fact = self.shard_facts[self._position[index]]
        if (shard.archive.digest, shard.size.sequences) != (fact["sha256"], fact["sequences"]):
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
        except StorageError:
            raise
        except (OSError, ValueError) as e:
            raise CorruptStoreError(
                f"{path}: {e}. Every shard may still be good: `logitstore repair {self.path}` "
                "checks them, and rebuilds index and seal.",
                path=path,
            ) from None


def spare_address_space() -> float:
    """Bytes that this process may still map (`ulimit -v`); infinite where there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        return math.inf
    return limit - pages * resource.getpagesize()
