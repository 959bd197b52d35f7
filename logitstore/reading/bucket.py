"""Reading a store's files from a bucket through the local cache; made anew in every process."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from logitstore.errors import CorruptStoreError, StorageError
from logitstore.format.spec import SHARDS_FOLDER, TOKENIZER_FOLDER, StoreSpec, shard_name
from logitstore.reading.prefetch import Prefetcher
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage.files import file_sha256
from logitstore.storage.objects import RemotePath

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


def local_tokenizer(store: RemotePath, spec: StoreSpec, cache: ShardCache) -> Path:
    """A folder with the store's tokenizer, fetched if it is not here.

    Raises:
        CorruptStoreError: A file is missing, or not the one that the store describes.
        StorageError: The object store, or the disk, refuses.
    """
    folder = cache.folder / "tokenizers" / spec.digest
    wanted: dict[str, Any] = spec.tokenizer["files"]
    try:
        if folder.is_dir() and {p.name: file_sha256(p) for p in folder.iterdir()} == wanted:
            return folder
        temporary = folder.with_name(f".tmp-{spec.digest}-{os.getpid()}-{secrets.token_hex(4)}")
        temporary.mkdir(parents=True)
        try:
            for name, digest in wanted.items():
                _fetch_small(store / TOKENIZER_FOLDER / name, temporary / name, digest)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except OSError as e:
            if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process did the same
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except StorageError:
        raise
    except OSError as e:
        raise cache.explain(e) from e
    return folder


def _fetch_small(source: RemotePath, target: Path, digest: str) -> None:
    kind = None
    try:
        target.write_bytes(source.read_bytes())
    except FileNotFoundError:
        found, kind = "nothing", "missing-file"
    else:
        found = f"SHA-256 {file_sha256(target)[:12]}…"
        if file_sha256(target) == digest:
            return
    raise CorruptStoreError(
        f"{source}: expected the file with SHA-256 {digest[:12]}…, as store.json says, found "
        f"{found}. Put it back from a copy.",
        path=source,
        kind=kind,
    )


def kept_array(
    cache: ShardCache, name: str, length: int, make: Callable[[], npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
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
    unnamed = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(unnamed, array)
        unnamed.replace(path)
    except OSError:  # a full or read-only disk only costs the time to make it again
        with suppress(OSError):
            unnamed.unlink(missing_ok=True)
    return array
