"""Objects in a bucket as the place of a store, through fsspec: the counterpart of `folder.py`.

A `RemotePath` is an address: it holds no connection, so it may be pickled and forked. Each process
makes its own client when it first needs one. `retry.py` retries every request.

An object is committed, whole and once, by one conditional create (S3: `If-None-Match: *`, also when
the parts of a multipart upload are put together). If the name is taken, the object is compared with
ours: if they are equal, our own request succeeded but its response was lost, and that is a success.
A service that ignores the condition would let a late worker replace a committed shard;
`check_conditional` detects that before anything depends on it.

Credentials, regions and endpoints are those of the client libraries' own environment and files.
"""

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from logitstore.errors import InputError, StorageError
from logitstore.storage.commit import TEMPORARY_PREFIX
from logitstore.storage.retry import http_statuses, retrying

TRIAL_PREFIX = f"{TEMPORARY_PREFIX}trial-"
_READ_BYTES = 32 * 1024 * 1024
_PART_BYTES = 16 * 1024 * 1024  # of a multipart upload
_PARTS_AT_ONCE = 4
_COMPARED_BYTES = 8 * 1024 * 1024  # a whole store.json; the end of a shard, with its digest
_BEYOND_END = 416  # the status of a range that begins where the object has ended
_EXTRAS = {"s3": "remote", "s3a": "remote", "hf": "train"}
#: What services say of an object that is another if it was written anew: S3, Google, the hub;
#: and fsspec's memory, where a time has microseconds.
_OF_CONTENT = ("ETag", "etag", "generation", "blob_id", "created")
_CONDITIONAL = ("s3", "s3a", "memory")
_memory_lock = threading.Lock()  # fsspec's memory:// checks for a name and writes in two steps


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object in a bucket, or a prefix of objects; see `StorePath` for each operation.

    Attributes:
        url: The address with its protocol, without a slash at the end.
    """

    url: str

    #: Every operation is a request: each costs money, and many together take the time of one.
    is_remote: ClassVar[bool] = True

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    @property
    def protocol(self) -> str:
        return self.url.split("://", 1)[0]

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.url.rsplit("/", 1)[0])

    def with_name(self, name: str) -> "RemotePath":
        return self.parent / name

    def resolve(self) -> "RemotePath":
        """Return the address as it is: there are no links to follow."""
        return self

    def client(self) -> tuple[Any, str]:
        """Return this process's client of the object store, and what it calls this address."""
        fs = _filesystem(self.protocol, os.getpid())
        fs.invalidate_cache()  # other processes write, too
        return fs, str(fs._strip_protocol(self.url))

    # -- reading ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether an object, or a prefix of objects, is at this address.

        Raises:
            StorageError: The store cannot be asked.
        """
        try:
            self._info()
        except FileNotFoundError:
            return False
        return True

    def is_file(self) -> bool:
        """Tell whether an object is at this address.

        Raises:
            StorageError: The store cannot be asked.
        """
        try:
            return self._info().get("type") != "directory"
        except FileNotFoundError:
            return False

    def is_symlink(self) -> bool:
        """Return False: objects have one name."""
        return False

    def size_bytes(self) -> int:
        """Return the size of the object in bytes.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: The store cannot be asked.
        """
        return int(self._info()["size"])

    def read_range(self, start: int, stop: int) -> bytes:
        """Read the bytes from `start` up to `stop`, fewer if the object ends before.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: Every attempt failed.
        """
        fs, key = self.client()

        def read() -> bytes:
            try:
                return bytes(fs.cat_file(key, start=start, end=stop))
            except Exception as e:  # client libraries raise classes of their own
                if _BEYOND_END in http_statuses(e):
                    return b""
                raise

        return retrying(read, self.url)

    def read_limited(self, limit: int) -> bytes:
        """Read all bytes of a small object.

        Raises:
            FileNotFoundError: There is no such object.
            ValueError: It has more than `limit` bytes.
            StorageError: Every attempt failed.
        """
        size = self.size_bytes()
        if size > limit:
            raise ValueError(f"it has more than {limit:,} bytes, the most it may have")
        return self.read_range(0, size) if size else b""

    def read_bytes(self) -> bytes:
        """Read all bytes of an object that is known to be small."""
        return b"".join(self.pieces())

    def pieces(self, size: int | None = None) -> Iterator[bytes]:
        """Read all bytes, a few megabytes at a time.

        Args:
            size: The size of the object in bytes, if it is known.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: Every attempt failed, or the object became shorter while it was read.
        """
        size = self.size_bytes() if size is None else size
        for start in range(0, size, _READ_BYTES):
            stop = min(start + _READ_BYTES, size)
            piece = self.read_range(start, stop)
            if len(piece) != stop - start:
                raise StorageError(
                    f"{self}: {stop - start:,} bytes were asked for, {len(piece):,} came. Was the "
                    "object replaced while it was read? Run the same command again."
                )
            yield piece

    def sha256(self) -> str:
        """Compute the SHA-256 of the object, in hex.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: Every attempt failed.
        """
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()

    def names(self) -> list[str]:
        """List the names directly below this prefix; none if there are no objects.

        Raises:
            StorageError: The store cannot be asked.
        """
        return sorted(self.signs())

    def signs(self) -> dict[str, str]:
        """Map each name directly below this prefix to a text that changes when it is written."""
        marks = ("size", "ETag", "LastModified", "created")
        return {name: " ".join(str(entry.get(m)) for m in marks) for name, entry in self._entries()}

    def stamps(self) -> dict[str, str]:
        """Map each name to a stamp, which no other content has; see `StorePath`."""
        stamp_of = {}
        for name, entry in self._entries():
            told = [f"{mark} {entry[mark]}" for mark in _OF_CONTENT if entry.get(mark)]
            if told:
                stamp_of[name] = " ".join([str(entry.get("size")), *told])
        return stamp_of

    def _entries(self) -> list[tuple[str, dict[str, Any]]]:
        """List what is directly below this prefix: names, and what the service says of each."""
        fs, key = self.client()
        try:
            entries = retrying(lambda: fs.ls(key, detail=True), self.url)
        except (FileNotFoundError, NotADirectoryError):
            return []
        below = [entry for entry in entries if entry["name"].rstrip("/") != key.rstrip("/")]
        return [(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry) for entry in below]

    # -- writing ---------------------------------------------------------------------------------

    def create(self, pieces: Iterable[Any], fs: object = None) -> bool:
        """Create an object that must not exist yet.

        Args:
            pieces: The bytes of the object.
            fs: Writes in folders alone; unused here and below.

        Returns:
            Whether the object now has these bytes; False if another writer's came first.

        Raises:
            StorageError: Every attempt failed.
        """
        data = b"".join(pieces)
        try:
            self._put(data, "create")
        except FileExistsError:  # another worker's, or our own whose response was lost
            return self._holds(data)
        except FileNotFoundError:  # no such bucket, or an upload that is already put together
            if not self._is_there_holding(data):
                raise StorageError(
                    f"{self}: there is no such bucket. Make it first, or choose another --out."
                ) from None
        return True

    def overwrite(self, data: bytes, fs: object = None) -> None:
        """Write a derived object, replacing an older one.

        Raises:
            StorageError: Every attempt failed; the older object is unchanged.
        """
        try:
            self._put(data, "overwrite")
        except FileNotFoundError:
            raise StorageError(
                f"{self}: there is no such bucket. Make it first, or choose another --out."
            ) from None

    def write_bytes(self, data: bytes) -> None:
        """Write the object, replacing an older one."""
        self.overwrite(data)

    def refresh(self, data: bytes) -> None:
        """Write these bytes and the time, so that the object differs from the one before."""
        self.overwrite(data + f" {time.time()}\n".encode())

    def make_folder(self, fs: object = None) -> None:
        """Do nothing: a bucket has no folders."""

    def write_folder(self, files: Mapping[str, bytes], fs: object = None) -> None:
        """Write objects below this prefix, each whole.

        Raises:
            StorageError: Every attempt failed.
        """
        for name, data in files.items():
            (self / name).overwrite(data)

    def delete(self) -> None:
        """Delete the object, if it exists."""
        fs, key = self.client()
        try:
            retrying(lambda: fs.rm_file(key), self.url)
        except FileNotFoundError:
            return

    def move_to(self, target: "RemotePath", fs: object = None) -> None:
        """Copy the object, then delete it here: an object store cannot rename."""
        client, key = self.client()
        retrying(lambda: client.cp_file(key, client._strip_protocol(target.url)), self.url)
        self.delete()

    def check_conditional(self, data: bytes) -> None:
        """Check that this object, which exists with these bytes, cannot be created again.

        Raises:
            StorageError: The service ignores the condition, so workers could replace each other's
                shards.
        """
        try:
            self._put(data, "create")
        except FileExistsError:
            return
        except FileNotFoundError:
            pass
        raise StorageError(
            f"{self}: this object store replaces an object that was to be created only if absent "
            "(If-None-Match), so a late worker could replace a committed shard. Capture to a "
            "folder and copy the finished store there, or use a service that knows conditional "
            "writes."
        )

    def check_writable(self) -> None:
        """Check that stores can be written at this kind of address. Sends no request.

        Raises:
            InputError: They cannot.
        """
        if self.protocol == "hf":
            raise InputError(
                f"{self}: is on a hub, where no store can be made file by file. Make it in a "
                f"folder, then run `logitstore push FOLDER {self}`."
            )
        if self.protocol not in _CONDITIONAL:
            raise InputError(
                f"{self}: cannot be written to: expected a folder or s3://, where a file can be "
                f"created only if it is absent; {self.protocol}:// is for reading. Capture to a "
                "folder and copy the finished store there."
            )
        if self.url.count("/") < 3:
            raise InputError(
                f"{self}: is a whole bucket. Name a place in it, as in --out {self}/my-store."
            )
        _filesystem(self.protocol, os.getpid())

    def check_access(self, option: str = "--out") -> None:
        """Do nothing: the first request fails if access is denied."""

    def try_writing(
        self, option: str = "--out", *, commits: bool = True, fs: object = None
    ) -> None:
        """Write a small object below this prefix, and delete it again.

        Raises:
            StorageError: It cannot be written, or the service ignores that it must be new.
        """
        trial = self / f"{TRIAL_PREFIX}{secrets.token_hex(8)}"
        data = trial.name.encode()
        try:
            if commits:
                trial.create([data])
                trial.check_conditional(data)
            else:
                trial.overwrite(data)
        except StorageError as e:  # the user named this prefix, and no object below it
            raise StorageError(str(e).replace(trial.url, self.url), kind=e.kind) from e
        finally:
            with suppress(StorageError):  # one that may only write leaves it there
                trial.delete()

    def _put(self, data: bytes, mode: str) -> None:
        fs, key = self.client()
        if self.protocol == "memory":
            with _memory_lock:
                retrying(lambda: fs.pipe_file(key, data, mode=mode), self.url)
            return
        parts = {"chunksize": _PART_BYTES, "max_concurrency": _PARTS_AT_ONCE}
        retrying(lambda: fs.pipe_file(key, data, mode=mode, **parts), self.url)

    def _holds(self, data: bytes) -> bool:
        if self.size_bytes() != len(data):
            return False
        start = max(0, len(data) - _COMPARED_BYTES)
        return self.read_range(start, len(data)) == data[start:]

    def _is_there_holding(self, data: bytes) -> bool:
        try:
            return self._holds(data)
        except FileNotFoundError:
            return False

    def _info(self) -> dict[str, Any]:
        fs, key = self.client()
        info: dict[str, Any] = retrying(lambda: fs.info(key), self.url)
        return info


@lru_cache(maxsize=16)
def _filesystem(protocol: str, process: int) -> Any:
    """Make fsspec's client of a protocol, one per process: a client does not survive a fork."""
    import fsspec  # imported here, since a folder does not need it

    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as e:
        extra = _EXTRAS.get(protocol)
        install = f"pip install 'logitstore[{extra}]'" if extra else "pip install …"
        raise InputError(
            f"{protocol}://: needs a package that is not installed ({e}). Install it with "
            f"`{install}`."
        ) from None
    except ValueError as e:
        raise InputError(
            f"{protocol}://: is no protocol that fsspec knows ({e}). Use a folder, s3:// or hf://."
        ) from None
