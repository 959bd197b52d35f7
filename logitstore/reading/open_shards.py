"""Keep recently read shards of a store open, and read sequences from them.

Opening a shard checks its headers, which costs a millisecond; so a bounded number of shards stays
open, and the least recently used one is closed first; earlier where a limit of address space
(`ulimit -v`) is near. A shard of a store in a bucket is first fetched into the machine's cache, and
the shards to be read next are fetched in the background.

Two kinds of failure are fixed by reading once more: no memory (all shards are closed first, with
what they keep), and a damaged copy in the cache (it is fetched anew).
"""

import logging
import math
import multiprocessing
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from logitstore.errors import CorruptStoreError
from logitstore.reading.bucket import BucketShards, following
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import LIMIT_VARIABLE, ShardCache
from logitstore.reading.shard_table import ShardTable
from logitstore.reading.threads import decode_parts
from logitstore.records import TokenRecords
from logitstore.storage.objects import RemotePath

log = logging.getLogger(__name__)

_OPEN_SHARDS = 64
_DECODED_TOGETHER = 16  # sequences: more save little, and fall out of the processor's cache
_SPARE_BYTES = 64 * 1024 * 1024  # left free below a limit of address space, for decoding

T = TypeVar("T")
#: The number of a shard, and places of sequences in it, ascending.
Part = tuple[int, list[int]]


class OpenShards:
    """The open shards of one store in one process."""

    def __init__(self, table: ShardTable, cache: ShardCache) -> None:
        """Remember the store; no shard is opened before it is read.

        Args:
            table: The store's shards.
            cache: Where shards of a bucket are kept.
        """
        self._table, self._cache = table, cache
        self._mine: _OfProcess | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Open files, locks and threads do not travel between processes.
        return self.__dict__ | {"_mine": None}

    def opened(self, index: int) -> Shard:
        """Return the shard of that number, opened if it is not.

        Raises:
            CorruptStoreError: The shard is damaged.
        """
        mine = self._of_process()
        shard = mine.get(index)
        if shard is None:  # opened without the lock: a download is long, and two are as good as one
            shard = self._open_one(index)
            self._table.check(shard, index)
            mine.put(index, shard)
        return shard

    def read_sequence(self, index: int, place: int, read: Callable[[Shard, int], T]) -> T:
        """Read something of the sequence at a place of a shard, as `read_shard` does."""
        return self.read_shard(index, lambda shard: read(shard, place))

    def read_shard(self, index: int, read: Callable[[Shard], T]) -> T:
        """Read something of a shard, and once more where the cause of a failure can be fixed.

        Args:
            index: The shard's number.
            read: Reads it.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        try:
            return read(self.opened(index))
        except MemoryError:  # what the open shards keep may be what is missing
            if not self._of_process().close_all():
                raise
        except CorruptStoreError as e:
            bucket = self._bucket_shards()
            if bucket is None or not bucket.drop_if_damaged(index, e.path):
                raise
            self._of_process().close(index)
        return read(self.opened(index))

    def read_many(self, wanted: Sequence[tuple[int, int]]) -> list[TokenRecords]:
        """Decode sequences given by shard and place; those of a shard are decoded together.

        Raises:
            CorruptStoreError: Bytes of one of them are damaged.
        """
        parts: list[Part] = []
        for index, group in groupby(sorted(set(wanted)), key=itemgetter(0)):
            places = [place for _, place in group]
            starts = range(0, len(places), _DECODED_TOGETHER)
            parts += [(index, places[start : start + _DECODED_TOGETHER]) for start in starts]
        records_at: dict[tuple[int, int], TokenRecords] = {}
        for (index, places), records in zip(parts, self._decode(parts), strict=True):
            records_at |= {(index, place): r for place, r in zip(places, records, strict=True)}
        return [records_at[place] for place in wanted]

    def fetch_ahead(self, sequences: Iterable[int]) -> None:
        """Begin to fetch the shards of these sequences, if they are in a bucket."""
        bucket = self._bucket_shards()
        if bucket is not None:
            bucket.fetch_ahead(self._table.shards_of(sequences))

    def _decode(self, parts: list[Part]) -> list[list[TokenRecords]]:
        """Decode a few parts at a time, so that the number of open shards stays bounded."""
        decoded: list[list[TokenRecords]] = []
        for start in range(0, len(parts), _DECODED_TOGETHER):
            some = parts[start : start + _DECODED_TOGETHER]
            try:
                decoded += decode_parts([(self.opened(index), places) for index, places in some])
            except (MemoryError, CorruptStoreError):  # `read_shard` fixes what can be fixed
                decoded += [
                    [self.read_sequence(index, place, Shard.records) for place in places]
                    for index, places in some
                ]
        return decoded

    def _open_one(self, index: int) -> Shard:
        table, bucket = self._table, self._bucket_shards()
        file = None if bucket is None else bucket.open(index)
        beside = None if bucket is None else bucket.open_beside
        shard = Shard(table.path_of(index), table.spec, table.plan, index, file, beside=beside)
        position = table.position(index)
        if bucket is not None and (
            position == 0 or self._of_process().has(table.numbers[position - 1])
        ):
            bucket.fetch_ahead(following(table.numbers, position))  # read in order, it seems
        return shard

    def _of_process(self) -> "_OfProcess":
        """Return what this process has open; a forked one begins with nothing."""
        mine = self._mine
        if mine is None or mine.process != os.getpid():
            mine = self._mine = _OfProcess()
        return mine

    def _bucket_shards(self) -> BucketShards | None:
        """Return this process's reader of the bucket; None for a store in a folder."""
        path = self._table.path
        if not isinstance(path, RemotePath):  # files are read where they lie
            return None
        mine = self._of_process()
        if mine.bucket is None:
            mine.bucket = BucketShards(path, self._cache, self._table.digest_and_size)
            if multiprocessing.parent_process() is None:
                self._warn_if_larger_than_cache()
        return mine.bucket

    def _warn_if_larger_than_cache(self) -> None:
        size, limit = self._table.stored_bytes, self._cache.limit_bytes
        if size > limit:
            log.warning(
                "%s: %s bytes, of which the cache in %s keeps %s. Read in order, each shard is "
                "fetched once; in random order, as training does, again and again. If the disk has "
                "room, set %s to more.",
                self._table.path,
                f"{size:,}",
                self._cache.folder,
                f"{limit:,}",
                LIMIT_VARIABLE,
            )


class _OfProcess:
    """The shards that one process has open, for any number of its threads."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.bucket: BucketShards | None = None
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def has(self, index: int) -> bool:
        return index in self._open

    def get(self, index: int) -> Shard | None:
        with self._lock:
            shard = self._open.get(index)
            if shard is not None:
                self._open.move_to_end(index)
            return shard

    def put(self, index: int, shard: Shard) -> None:
        """Keep a shard open, and close those that were used least recently beyond the limits."""
        with self._lock:
            self._open[index] = shard
            self._open.move_to_end(index)
            while len(self._open) > 1 and (
                len(self._open) > _OPEN_SHARDS or spare_address_space() < _SPARE_BYTES
            ):
                self._open.popitem(last=False)

    def close(self, index: int) -> None:
        with self._lock:
            self._open.pop(index, None)

    def close_all(self) -> bool:
        """Close every shard, and tell whether there was one."""
        with self._lock:
            were_open = bool(self._open)
            self._open.clear()
            return were_open


def spare_address_space() -> float:
    """Count the bytes that this process may still take (`ulimit -v`); infinite without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        return math.inf
    return limit - pages * resource.getpagesize()
