"""Read the index of a finished store by columns, whatever its size.

The index of up to 32,768 shards, ten megabytes, is kept in memory as it is stored. A larger one is
read again for each group of columns that is asked for, and hashed again: nothing in it is believed
before it has the digest of the seal. Of a store in a bucket such a file is fetched once into the
machine's cache, which all processes share.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from logitstore.errors import CorruptStoreError, StorageError
from logitstore.format.index import most_bytes
from logitstore.format.index_columns import ALL, read_groups
from logitstore.format.plan import Plan
from logitstore.format.spec import INDEX_FILE
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage.commit import temporary
from logitstore.storage.file_bytes import Bytes, FileBytes
from logitstore.storage.files import open_file
from logitstore.storage.paths import StorePath

#: Shards whose index is kept in memory.
MOST_KEPT = 32_768


class IndexFile:
    """The index of one finished store.

    Args:
        store: The store.
        digest: The SHA-256 of the file, from the seal.
        plan: The store's.
        cache: Where a large index of a bucket is kept.
    """

    def __init__(self, store: StorePath, digest: str, plan: Plan, cache: ShardCache) -> None:
        self.path, self._store = store / INDEX_FILE, store
        self._digest, self._plan, self._cache = digest, plan, cache
        self._kept: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def columns(self, names: Sequence[str] = ALL) -> pa.Table:
        """Read some columns; texts stay references to a dictionary.

        Raises:
            CorruptStoreError: It is not the index that was sealed, or cannot be one.
            StorageError: The object store, or the disk of the cache, fails.
        """
        return pa.concat_tables(self.groups(names))

    def groups(self, names: Sequence[str] = ALL) -> Iterator[pa.Table]:
        """Read some columns as `columns` does, those of a million shards at a time."""
        try:
            yield from read_groups(self._whole(), self._plan, names)
        except StorageError:
            raise
        except (OSError, ValueError) as e:
            raise cannot_be_used(self._store, self.path, e) from None

    def _whole(self) -> Bytes:
        if self._plan.shard_count > MOST_KEPT:
            return self._fetched() if self.path.is_remote else self._file()
        if self._kept is None:
            data = self.path.read_limited(most_bytes(self._plan))
            self._check(hashlib.sha256(data).hexdigest())
            self._kept = data
        return memoryview(self._kept)

    def _file(self, path: Path | None = None) -> FileBytes:
        with open_file(Path(str(self.path)) if path is None else path) as file:
            whole = FileBytes(file)
        limit = most_bytes(self._plan)
        if len(whole) > limit:
            raise ValueError(f"it has more than {limit:,} bytes, the most it may have")
        found = hashlib.sha256()
        for piece in whole.pieces():
            found.update(piece)
        self._check(found.hexdigest())
        return whole

    def _fetched(self) -> FileBytes:
        """Open the copy of a bucket's index, which is fetched if there is none, or another."""
        copy = self._cache.folder / "indexes" / f"{self._digest}.parquet"
        with suppress(OSError, ValueError):
            return self._file(copy)
        limit, size = most_bytes(self._plan), 0
        unnamed = temporary(copy)
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with unnamed.open("xb") as file:
                for piece in self.path.pieces():
                    size += len(piece)
                    if size > limit:
                        raise ValueError(f"it has more than {limit:,} bytes, the most it may have")
                    file.write(piece)
            unnamed.replace(copy)
        except (StorageError, FileNotFoundError):
            raise
        except OSError as e:
            raise self._cache.explain(e) from e
        finally:
            unnamed.unlink(missing_ok=True)
        return self._file(copy)

    def _check(self, found: str) -> None:
        if found != self._digest:
            raise ValueError(
                f"it is not the file that was sealed (SHA-256 {found[:12]}…, not "
                f"{self._digest[:12]}…)"
            )


def cannot_be_used(store: StorePath, path: StorePath, why: Exception) -> CorruptStoreError:
    """Make the error for an index or a seal that cannot be used."""
    return CorruptStoreError(
        f"{path}: {why}. Every shard may still be good: `logitstore repair {store}` "
        "checks them, and rebuilds index and seal.",
        path=path,
    )
