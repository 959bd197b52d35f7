"""Reading a store's files from a bucket through the local cache; made anew in every process."""

import hashlib
import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from logitstore.errors import CorruptStoreError, StorageError
from logitstore.format.numpy_types import I64
from logitstore.format.spec import SHARDS_FOLDER, TOKENIZER_FOLDER, StoreSpec, shard_name
from logitstore.reading.prefetch import Prefetcher
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage import commit
from logitstore.storage.files import file_sha256
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath

_AHEAD = 2  # shards fetched beyond the one that is read, when they are read in order


class BucketShards:
    """The shards of one store, by number.

    Args:
        store: The store's address.
        cache: Where copies are kept.
        facts: (digest, bytes) of a shard, from the index.
    """

    def __init__(
        self,
        store: RemotePath,
        cache: ShardCache,
        facts: Callable[[int], tuple[str, int]],
    ) -> None:
        self.store, self.cache, self._facts = store, cache, facts
        self._prefetcher = Prefetcher(lambda index: self.open(index).close())

    def open(self, index: int) -> BinaryIO:
        """A shard's bytes, open for reading.

        Raises:
            CorruptStoreError: The object is missing, or not the one in the index.
            StorageError: The object store, or the disk, refuses.
        """
        return self.cache.open(self._object(index), *self._facts(index))

    def fetch_ahead(self, indices: Iterable[int]) -> None:
        """Have these on the local disk soon; never more than a quarter of the cache at once."""
        wanted, room = [], self.cache.limit_bytes // 4
        for index in indices:
            digest, size = self._facts(index)
            room -= size
            if room < 0:
                break
            if not self.cache.has(digest):
                wanted.append(index)
        self._prefetcher.ask(wanted)

    def drop_if_damaged(self, index: int) -> bool:
        """Whether the local copy was at fault; then it is gone, and is fetched anew when asked."""
        digest, _ = self._facts(index)
        if self.cache.is_whole(digest):
            return False
        self.cache.forget(digest)
        return True

    def _object(self, index: int) -> RemotePath:
        return self.store / SHARDS_FOLDER / shard_name(index)


def following(order: list[int], position: int) -> list[int]:
    """The shards after the one at a position, as many as are worth fetching ahead."""
    return order[position + 1 : position + 1 + _AHEAD]


def tokenizer_folder(store: StorePath, spec: StoreSpec, cache: ShardCache) -> Path:
    """Find a folder with the store's tokenizer; of a store in a bucket, fetch it if need be.

    Raises:
        CorruptStoreError: A file is missing, or not the one that the store describes.
        StorageError: The object store, or the disk, refuses.
    """
    if isinstance(store, Path):  # transformers reads folders, no objects
        return store / TOKENIZER_FOLDER
    folder = cache.folder / "tokenizers" / spec.digest
    wanted: dict[str, Any] = spec.tokenizer["files"]
    try:
        if folder.is_dir() and {p.name: file_sha256(p) for p in folder.iterdir()} == wanted:
            return folder
        files = {
            name: _fetch_small(store / TOKENIZER_FOLDER / name, digest)
            for name, digest in wanted.items()
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        commit.replace_folder(folder, files)
    except StorageError:
        raise
    except OSError as e:
        raise cache.explain(e) from e
    return folder


def _fetch_small(source: StorePath, digest: str) -> bytes:
    kind = None
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        found, kind = "nothing", "missing-file"
    else:
        fetched = hashlib.sha256(data).hexdigest()
        if fetched == digest:
            return data
        found = f"SHA-256 {fetched[:12]}…"
    raise CorruptStoreError(
        f"{source}: expected the file with SHA-256 {digest[:12]}…, as store.json says, found "
        f"{found}. Put it back from a copy.",
        path=source,
        kind=kind,
    )


def kept_array(cache: ShardCache, name: str, length: int, make: Callable[[], I64]) -> I64:
    """An array from the cache, or made and put there.

    Args:
        cache: Where.
        name: Everything that it depends on.
        length: Of the array.
        make: Makes it.
    """
    path = cache.folder / "sequences" / f"{hashlib.sha256(name.encode()).hexdigest()}.npy"
    try:
        found = np.load(path, allow_pickle=False)
        if found.shape == (length,) and found.dtype == np.int64:
            return np.asarray(found, np.int64)
    except (OSError, ValueError, EOFError):  # not there, or damaged: then it is made again
        pass
    array = make()
    data = io.BytesIO()
    np.save(data, array)
    with suppress(OSError):  # a full or read-only disk only costs the time to make it again
        path.parent.mkdir(parents=True, exist_ok=True)
        commit.write_whole(path, data.getvalue())
    return array
