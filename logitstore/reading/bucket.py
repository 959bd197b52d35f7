"""Read a store's files from a bucket through the local cache; made anew in every process."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from logitstore.errors import CorruptStoreError, Located, StorageError
from logitstore.format.canonical_json import canonical_json
from logitstore.format.spec import SHARDS_FOLDER, TOKENIZER_FOLDER, StoreSpec, shard_name
from logitstore.reading.prefetch import Prefetcher
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage import commit
from logitstore.storage.files import MAX_TOKENIZER_BYTES, file_sha256
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath

_AHEAD = 2  # shards fetched beyond the one that is read, when they are read in order


class BucketShards:
    """A reader of one store's shards in a bucket, by their numbers.

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
        self._beside: dict[str, str] = {}
        self._prefetcher = Prefetcher(lambda index: self.open(index).close())

    def open(self, index: int) -> BinaryIO:
        """Open a shard's bytes for reading, fetched if they are not in the cache.

        Raises:
            CorruptStoreError: The object is missing, or not the one in the index.
            StorageError: The object store, or the disk, fails.
        """
        return self.cache.open(self._object(index), *self._facts(index))

    def open_beside(self, path: StorePath, digest: str, size: int) -> BinaryIO:
        """Open another object of the store, fetched if it is not in the cache.

        Raises:
            CorruptStoreError: The object is missing, or not the one with this digest.
            StorageError: The object store, or the disk, fails.
        """
        self._beside[str(path)] = digest
        return self.cache.open(self.store / path.parent.name / path.name, digest, size)

    def fetch_ahead(self, indices: Iterable[int]) -> None:
        """Begin to fetch shards to the local disk, at most a quarter of the cache at once."""
        wanted, room = [], self.cache.limit_bytes // 4
        for index in indices:
            digest, size = self._facts(index)
            room -= size
            if room < 0:
                break
            if not self.cache.has(digest):
                wanted.append(index)
        self._prefetcher.ask(wanted)

    def drop_if_damaged(self, index: int, path: Located) -> bool:
        """Remove the local copies of a shard, and of the object at a path that was opened beside
        it, if they are damaged; tell whether to fetch one anew.
        """
        digests = [self._facts(index)[0], self._beside.get(str(path))]
        damaged = [each for each in digests if each is not None and not self.cache.is_whole(each)]
        for each in damaged:
            self.cache.forget(each)
        return bool(damaged)

    def _object(self, index: int) -> RemotePath:
        return self.store / SHARDS_FOLDER / shard_name(index)


def following(order: Sequence[int], position: int) -> Sequence[int]:
    """List the shards after the one at a position, as many as are worth fetching ahead."""
    return order[position + 1 : position + 1 + _AHEAD]


def tokenizer_folder(store: StorePath, spec: StoreSpec, cache: ShardCache) -> Path:
    """Return a local folder with the files of the store's tokenizer, and with nothing else.

    That is the store's own, or a copy in the cache: of a bucket, whose objects transformers cannot
    read, and of a folder with files that the store does not know, which transformers would read.

    Raises:
        CorruptStoreError: A file is missing, or not the one that the store describes.
        StorageError: The object store, or the disk, fails.
    """
    wanted: dict[str, str] = spec.tokenizer["files"]
    return checked_folder(store / TOKENIZER_FOLDER, wanted, cache)


def checked_folder(source: StorePath, wanted: Mapping[str, str], cache: ShardCache) -> Path:
    """Return a local folder with these files, and with nothing else.

    Args:
        source: The folder of a store that has them, and may have others.
        wanted: The SHA-256 of each file, by name.
        cache: Where a copy is kept, if one is needed.

    Raises:
        CorruptStoreError: A file is missing, or not the one that the digest is of.
        StorageError: The object store, or the disk, fails.
    """
    if isinstance(source, Path):
        for name, digest in wanted.items():
            _fetch_small(source / name, digest)
        if _names_in(source) == set(wanted):
            return source
    key = hashlib.sha256(canonical_json(dict(wanted))).hexdigest()
    folder = cache.folder / "tokenizers" / key
    try:
        if _holds(folder, wanted):
            return folder
        files = {name: _fetch_small(source / name, digest) for name, digest in wanted.items()}
        folder.parent.mkdir(parents=True, exist_ok=True)
        commit.replace_folder(folder, files)
    except StorageError:
        raise
    except OSError as e:
        raise cache.explain(e) from e
    return folder


def _holds(folder: Path, wanted: Mapping[str, str]) -> bool:
    """Tell whether a folder of the cache has just these files."""
    try:
        return _names_in(folder) == set(wanted) and all(
            file_sha256(folder / name) == digest for name, digest in wanted.items()
        )
    except (OSError, ValueError):  # missing, or no ordinary file: then it is made again
        return False


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _fetch_small(source: StorePath, digest: str) -> bytes:
    kind = None
    try:
        data = source.read_limited(MAX_TOKENIZER_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        actual, kind = "nothing", "missing-file"
    except StorageError:
        raise
    except (OSError, ValueError) as e:
        actual = f"one that cannot be read ({e})"
    else:
        fetched = hashlib.sha256(data).hexdigest()
        if fetched == digest:
            return data
        actual = f"SHA-256 {fetched[:12]}…"
    raise CorruptStoreError(
        f"{source}: expected the file with SHA-256 {digest[:12]}…, as store.json says, found "
        f"{actual}. Put it back from a copy.",
        path=source,
        kind=kind,
    )
