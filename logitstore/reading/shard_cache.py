"""Cache whole shards of buckets on the local disk, shared by every process and every store.

    ~/.cache/logitstore/            or $LOGITSTORE_CACHE, or open_store(…, cache=…)
      shards/<sha256>.zarr.zip      by the digest of its bytes, so one that changed is another file
      shards/.tmp-<sha256>-…        being fetched
      locks/<2 hex digits>          one process fetches a shard, the others wait for it

A download gets its name when its size and SHA-256 are those of the index, never before; it is
opened before it is named, so no other process can remove it in between. Least recently used shards
are removed when the folder holds more than its limit ($LOGITSTORE_CACHE_BYTES, or cache_bytes=…).
Removing a file that another process has open is harmless: the bytes stay, and take their space on
the disk, until that process closes it.
"""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from logitstore.errors import CorruptStoreError, InputError, StorageError
from logitstore.format.zip_archive import DIGEST_CHARS, END
from logitstore.storage.commit import TEMPORARY_PREFIX, temporary
from logitstore.storage.objects import RemotePath

FOLDER_VARIABLE, LIMIT_VARIABLE = "LOGITSTORE_CACHE", "LOGITSTORE_CACHE_BYTES"
DEFAULT_LIMIT_BYTES = 64 * 1024**3
_SUFFIX = ".zarr.zip"
_STALE_S = 3600.0  # a download without a new byte for this long has lost its process
_EVICT = "evict"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards from which the least recently used one is removed first.

    Attributes:
        folder: The folder; made when first needed.
        limit_bytes: What its shards may take together. One shard larger than that is kept alone.
    """

    folder: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES

    @classmethod
    def chosen(
        cls, folder: "str | os.PathLike[str] | None" = None, limit_bytes: int | None = None
    ) -> "ShardCache":
        """Choose the cache by arguments, else environment variables, else defaults.

        Raises:
            InputError: The limit is not a number of bytes.
        """
        named = folder or os.environ.get(FOLDER_VARIABLE)
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        given = os.environ.get(LIMIT_VARIABLE) if limit_bytes is None else str(limit_bytes)
        try:
            limit = DEFAULT_LIMIT_BYTES if not given else int(given)
        except ValueError:
            limit = -1
        if limit < 0:
            raise InputError(
                f"{LIMIT_VARIABLE}: expected a number of bytes, found {given!r}. Set it as in "
                f"{LIMIT_VARIABLE}=50000000000, or unset it for {DEFAULT_LIMIT_BYTES:,}."
            )
        return cls(Path(named).expanduser() if named else base / "logitstore", limit)

    def open(self, source: RemotePath, digest: str, size: int) -> BinaryIO:
        """Open a shard's bytes for reading, fetched if they are not in the cache.

        Args:
            source: The shard's object.
            digest: The shard's digest, from the index.
            size: The object's size in bytes.

        Raises:
            CorruptStoreError: The object is missing, or not the one that the digest is of.
            StorageError: The object store, or the disk, fails.
        """
        file = self._opened(digest, size)
        if file is not None:
            return file
        try:
            with self._lock(digest):
                return self._opened(digest, size) or self._fetch(source, digest, size)
        except StorageError:
            raise
        except OSError as e:
            raise self.explain(e) from e

    def has(self, digest: str) -> bool:
        """Tell whether the cache has the shard."""
        return self._path(digest).exists()

    def forget(self, digest: str) -> None:
        """Remove a copy that turned out to be damaged."""
        self._path(digest).unlink(missing_ok=True)

    def is_whole(self, digest: str) -> bool:
        """Tell whether the cache has a copy, and it still has the bytes that were fetched.

        A copy that is gone was evicted while it was read: what its reader saw may be damaged.
        """
        try:
            with self._path(digest).open("rb") as f:
                size = os.fstat(f.fileno()).st_size
                actual, left = hashlib.sha256(), size - END.size - DIGEST_CHARS
                while left > 0 and (piece := f.read(min(left, 1024 * 1024))):
                    actual.update(piece)
                    left -= len(piece)
        except FileNotFoundError:
            return False
        return actual.hexdigest() == digest

    def download(self, source: RemotePath, size: int | None = None) -> tuple[BinaryIO, str]:
        """Download an object into a file without a name, for readers that must bypass the cache.

        Returns:
            The open file, and the digest of its bytes, taken as that of a shard.
        """
        try:
            file, path, digest = self._download(source, f"check-{os.getpid()}", size)
            path.unlink()
        except StorageError:
            raise
        except OSError as e:
            raise self.explain(e) from e
        return file, digest

    def _path(self, digest: str) -> Path:
        return self.folder / "shards" / f"{digest}{_SUFFIX}"

    def _opened(self, digest: str, size: int) -> BinaryIO | None:
        path = self._path(digest)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self.explain(e) from e
        if os.fstat(file.fileno()).st_size != size:  # another program has cut it off
            file.close()
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # another user's, or read-only: then it merely counts as older
            os.utime(path)
        return file

    def _fetch(self, source: RemotePath, digest: str, size: int) -> BinaryIO:
        """Download, check and name a shard; the caller holds its lock."""
        for leftover in (self.folder / "shards").glob(f"{TEMPORARY_PREFIX}{digest}-*"):
            leftover.unlink(missing_ok=True)  # its process died: else it would hold the lock
        self.make_room(size)
        try:
            file, path, actual = self._download(source, digest, size)
        except OSError as e:
            if e.errno not in _FULL or isinstance(e, StorageError):
                raise
            self.make_room(self.limit_bytes)  # the disk is smaller than the limit
            file, path, actual = self._download(source, digest, size)
        if actual != digest:
            file.close()
            path.unlink(missing_ok=True)
            raise changed(source, f"SHA-256 {actual[:12]}…", f"SHA-256 {digest[:12]}…")
        path.replace(self._path(digest))
        return file

    def _download(
        self, source: RemotePath, label: str, size: int | None
    ) -> tuple[BinaryIO, Path, str]:
        """Download into a temporary file, which is removed if anything goes wrong."""
        folder = self.folder / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        path = temporary(folder / label)
        file = path.open("x+b")
        try:
            digest = _copy(source, file, _size(source, size))
            file.flush()
            os.fsync(file.fileno())
        except BaseException as e:
            file.close()
            path.unlink(missing_ok=True)
            if isinstance(e, FileNotFoundError):
                raise _missing(source) from None
            raise
        file.seek(0)
        return file, path, digest

    def make_room(self, wanted_bytes: int) -> None:
        """Remove the least recently used shards until `wanted_bytes` more fit below the limit."""
        folder = self.folder / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock(_EVICT):
            kept, total = [], 0
            for entry in os.scandir(folder):
                with suppress(FileNotFoundError):  # gone since it was listed
                    about = entry.stat()
                    if entry.name.startswith(TEMPORARY_PREFIX):
                        if time.time() - about.st_mtime > _STALE_S:
                            Path(entry.path).unlink(missing_ok=True)
                    elif entry.name.endswith(_SUFFIX):
                        kept.append((about.st_mtime_ns, about.st_size, entry.path))
                        total += about.st_size
            for _, size, path in sorted(kept):
                if total + wanted_bytes <= self.limit_bytes:
                    break
                Path(path).unlink(missing_ok=True)
                total -= size

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Hold the lock of a shard, or of `_EVICT`; the kernel releases it if the process dies.

        There are 257, so that their files need not be removed: shards share 256 by two hex digits.
        """
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        name = key if key == _EVICT else key[:2]
        descriptor = os.open(folder / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # a file system without locks: two may fetch the same bytes
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def explain(self, error: OSError) -> StorageError:
        """Turn a failure of the local disk into an error that says what to do about it."""
        problem, step = {
            errno.ENOSPC: ("the disk is full", f"Make room, or lower {LIMIT_VARIABLE}"),
            errno.EDQUOT: ("your disk quota is used up", f"Make room, or lower {LIMIT_VARIABLE}"),
            errno.EACCES: ("no permission to write here", "Fix the folder's permissions"),
            errno.EROFS: ("the file system is read-only", "It must be on one that is not"),
        }.get(error.errno or 0, (f"it cannot be used ({error})", "Fix that"))
        return StorageError(
            f"{self.folder}: the cache for shards of buckets: {problem}. {step}, or choose another "
            f"folder with {FOLDER_VARIABLE}, then run the same command again.",
            kind="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None,
        )


def changed(source: RemotePath, actual: str, expected: str) -> CorruptStoreError:
    """Make the error for an object that is not the one in the index."""
    store = source.parent.parent
    return CorruptStoreError(
        f"{source}: the object is not the one this store was sealed with (found {actual}, the "
        f"index says {expected}). Was it replaced? If the store was made again, open it again; "
        f"else see `logitstore verify {store}` and put the object back from a copy.",
        path=source,
    )


def _missing(source: RemotePath) -> CorruptStoreError:
    return CorruptStoreError(
        f"{source}: the object is missing. Put it back from a copy, or run `logitstore repair "
        f"{source.parent.parent}` to have it redone.",
        path=source,
        kind="missing-file",
    )


def _size(source: RemotePath, expected: int | None) -> int:
    actual = source.size_bytes()
    if expected is not None and actual != expected:
        raise changed(source, f"{actual:,} bytes", f"{expected:,}")
    return actual


def _copy(source: RemotePath, file: BinaryIO, size: int) -> str:
    """Copy all bytes of an object; return the digest of those before the end record."""
    digest, left = hashlib.sha256(), size - END.size - DIGEST_CHARS
    for piece in source.pieces(size):
        file.write(piece)
        if left > 0:
            digest.update(memoryview(piece)[:left])
            left -= len(piece)
    return digest.hexdigest()
