"""Whole shards of buckets on the local disk, shared by every process and every store.

    ~/.cache/logitstore/            or $LOGITSTORE_CACHE, or open_store(…, cache=…)
      shards/<sha256>.zarr.zip      by the digest of its bytes, so one that changed is another file
      shards/.tmp-<sha256>-…        being fetched
      locks/<2 hex digits>          one process fetches a shard, the others wait for it

A download gets its name when its size and SHA-256 are those of the index, never before; it is
opened before it is named, so nobody can take it away in between. Least recently used shards are
removed when the folder holds more than its limit ($LOGITSTORE_CACHE_BYTES, or cache_bytes=…).
Removing a file that another process has mapped is harmless: it keeps its bytes, and the disk its
space, until that process lets go.
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
_STALE_S = 3600.0  # a download that nothing was added to for so long has lost its process
_EVICT = "evict"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards, least recently used first to go.

    Attributes:
        folder: Where it is; made when first needed.
        limit_bytes: What its shards may take together. One shard larger than that is kept alone.
    """

    folder: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES

    @classmethod
    def chosen(
        cls, folder: "str | os.PathLike[str] | None" = None, limit_bytes: int | None = None
    ) -> "ShardCache":
        """The cache that arguments, else environment variables, else defaults name.

        Raises:
            InputError: The limit is no number of bytes.
        """
        named = folder or os.environ.get(FOLDER_VARIABLE)
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        said = os.environ.get(LIMIT_VARIABLE) if limit_bytes is None else str(limit_bytes)
        try:
            limit = DEFAULT_LIMIT_BYTES if not said else int(said)
        except ValueError:
            limit = -1
        if limit < 0:
            raise InputError(
                f"{LIMIT_VARIABLE}: expected a number of bytes, found {said!r}. Set it as in "
                f"{LIMIT_VARIABLE}=50000000000, or unset it for {DEFAULT_LIMIT_BYTES:,}."
            )
        return cls(Path(named).expanduser() if named else base / "logitstore", limit)

    def open(self, source: RemotePath, digest: str, size: int) -> BinaryIO:
        """The shard's bytes, open for reading, fetched if they are not here.

        Args:
            source: The object.
            digest: Its shard digest.
            size: Its bytes.

        Raises:
            CorruptStoreError: The object is missing, or not the one that the digest is of.
            StorageError: The object store, or the disk, refuses.
        """
        found = self._opened(digest, size)
        if found is not None:
            return found
        try:
            with self._lock(digest):
                return self._opened(digest, size) or self._fetch(source, digest, size)
        except StorageError:
            raise
        except OSError as e:
            raise self.explain(e) from e

    def has(self, digest: str) -> bool:
        """Whether the shard is here."""
        return self._path(digest).exists()

    def forget(self, digest: str) -> None:
        """Remove a copy that turned out to be damaged."""
        self._path(digest).unlink(missing_ok=True)

    def is_whole(self, digest: str) -> bool:
        """Whether the copy here, if there is one, still has the bytes that were fetched."""
        try:
            with self._path(digest).open("rb") as f:
                size = os.fstat(f.fileno()).st_size
                found, wanted = hashlib.sha256(), size - END.size - DIGEST_CHARS
                while wanted > 0 and (piece := f.read(min(wanted, 1024 * 1024))):
                    found.update(piece)
                    wanted -= len(piece)
        except FileNotFoundError:
            return True
        return found.hexdigest() == digest

    def download(self, source: RemotePath, size: int | None = None) -> tuple[BinaryIO, str]:
        """The object's bytes in a file without a name, for what must not come from the cache.

        Returns:
            The file, and the digest of its bytes as a shard's is taken.
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
        if os.fstat(file.fileno()).st_size != size:  # cut by whatever is not this program
            file.close()
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # of another user, or read-only: then it is merely not "recent"
            os.utime(path)
        return file

    def _fetch(self, source: RemotePath, digest: str, size: int) -> BinaryIO:
        """Under the lock: download, check, name."""
        for leftover in (self.folder / "shards").glob(f"{TEMPORARY_PREFIX}{digest}-*"):
            leftover.unlink(missing_ok=True)  # whose process died: it would hold the lock
        self.make_room(size)
        try:
            file, path, found = self._download(source, digest, size)
        except OSError as e:
            if e.errno not in _FULL or isinstance(e, StorageError):
                raise
            self.make_room(self.limit_bytes)  # the disk is smaller than the limit
            file, path, found = self._download(source, digest, size)
        if found != digest:
            file.close()
            path.unlink(missing_ok=True)
            raise changed(source, f"SHA-256 {found[:12]}…", f"SHA-256 {digest[:12]}…")
        path.replace(self._path(digest))
        return file

    def _download(
        self, source: RemotePath, label: str, size: int | None
    ) -> tuple[BinaryIO, Path, str]:
        """Into a temporary file, which is removed if anything goes wrong."""
        folder = self.folder / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        path = temporary(folder / label)
        file = path.open("x+b")
        try:
            there = _size(source, size)
            digest = _copy(source, file, there)
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
        """Remove least recently used shards until `wanted_bytes` more fit below the limit."""
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
    def _lock(self, what: str) -> Iterator[None]:
        """One of 257 locks, held by one process and thread; released by the kernel if it dies."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        name = what if what == _EVICT else what[:2]
        descriptor = os.open(folder / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # a file system without locks: two may fetch the same bytes
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def explain(self, error: OSError) -> StorageError:
        """A failure of the local disk, with what to do about it."""
        what, step = {
            errno.ENOSPC: ("the disk is full", f"Make room, or lower {LIMIT_VARIABLE}"),
            errno.EDQUOT: ("your disk quota is used up", f"Make room, or lower {LIMIT_VARIABLE}"),
            errno.EACCES: ("no permission to write here", "Mend the folder's permissions"),
            errno.EROFS: ("the file system is read-only", "It must be on one that is not"),
        }.get(error.errno or 0, (f"it cannot be used ({error})", "Mend that"))
        return StorageError(
            f"{self.folder}: the cache for shards of buckets: {what}. {step}, or choose another "
            f"folder with {FOLDER_VARIABLE}, then run the same command again.",
            kind="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None,
        )


def changed(source: RemotePath, found: str, expected: str) -> CorruptStoreError:
    """An object that is not the one that the index is of."""
    store = source.parent.parent
    return CorruptStoreError(
        f"{source}: the object is not the one this store was sealed with (found {found}, the index "
        f"says {expected}). Was it replaced? If the store was made again, open it again; else see "
        f"`logitstore verify {store}` and put the object back from a copy.",
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
    there = source.size_bytes()
    if expected is not None and there != expected:
        raise changed(source, f"{there:,} bytes", f"{expected:,}")
    return there


def _copy(source: RemotePath, file: BinaryIO, size: int) -> str:
    """Write all bytes; the digest of those before the end record."""
    digest, left = hashlib.sha256(), size - END.size - DIGEST_CHARS
    for piece in source.pieces(size):
        file.write(piece)
        if left > 0:
            digest.update(memoryview(piece)[:left])
            left -= len(piece)
    return digest.hexdigest()
