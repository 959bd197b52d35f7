"""Write an export to zarr into a folder, which appears whole, or into a bucket.

A folder is written under a temporary name and renamed at the end. In a bucket nothing can be
renamed, so the root's `zarr.json` is written last, and without it nothing opens.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from logitstore.errors import LogitStoreError, MismatchError, StorageError
from logitstore.format.shard_group import GROUP_MEMBER
from logitstore.moving.folders import publish_folder
from logitstore.storage import commit
from logitstore.storage.files import read_file
from logitstore.storage.folder import LocalPath
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath, local
from logitstore.storage.retry import explain, retrying

_AGAIN = "an export replaces nothing. Choose another --out"


class Target(Protocol):
    """The folder or bucket that an export is written to; names are relative to it."""

    def check_free(self) -> None:
        """Raise MismatchError unless the place is empty, StorageError if it cannot be written."""

    def begin(self) -> None:
        """Make the folder that must exist before anything is written."""

    def store(self, name: str) -> Store:
        """Return zarr's store at one array; from one above, zarr would write the group first."""

    def retried(self, action: Callable[[], Any]) -> Any:
        """Run an action that writes; run it again after a failure that may be temporary."""

    def read(self, name: str, limit: int) -> bytes:
        """Read a small file."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""

    def publish(self) -> None:
        """Make the export visible to readers, after all of it was written."""

    def explained(self, error: OSError) -> LogitStoreError:
        """Return the error to raise for a failed export: why it failed and what to do next."""

    def clean_up(self) -> None:
        """Remove what a failed export has written."""


def target_at(place: StorePath) -> Target:
    """Choose how an export is written to a place: only a folder can be renamed."""
    return _Bucket(place) if isinstance(place, RemotePath) else _Folder(LocalPath(local(place)))


class _Folder:
    def __init__(self, place: LocalPath) -> None:
        self._place, self._unnamed = place, commit.temporary(place)

    def check_free(self) -> None:
        if self._place.is_symlink() or self._place.exists():
            raise MismatchError(f"{self._place}: is there already, and {_AGAIN}.")
        self._place.try_writing(commits=False)

    def begin(self) -> None:
        commit.make_folder(self._place.parent)

    def store(self, name: str) -> Store:
        return LocalStore(self._unnamed / name)

    def retried(self, action: Callable[[], Any]) -> Any:
        return action()

    def read(self, name: str, limit: int) -> bytes:
        return read_file(self._unnamed / name, limit)

    def write(self, name: str, data: bytes) -> None:
        commit.overwrite(self._unnamed / name, data)

    def publish(self) -> None:
        publish_folder(self._unnamed, self._place)

    def explained(self, error: OSError) -> LogitStoreError:
        if isinstance(error, FileExistsError):
            return MismatchError(f"{self._place}: was made by another process meanwhile.")
        return commit.explain(error, self._place)

    def clean_up(self) -> None:
        shutil.rmtree(self._unnamed, ignore_errors=True)


class _Bucket:
    def __init__(self, place: RemotePath) -> None:
        self._place = place

    def check_free(self) -> None:
        if (self._place / GROUP_MEMBER).exists():
            raise MismatchError(f"{self._place}: is there already, and {_AGAIN}.")
        if names := self._place.names():
            raise MismatchError(
                f"{self._place}: holds {names[0]} but no zarr.json: other files, or what an "
                f"interrupted export left, and {_AGAIN}, or remove what is there."
            )
        self._place.try_writing(commits=False)

    def begin(self) -> None:
        pass

    def store(self, name: str) -> Store:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        # By the client of all other requests: one that zarr makes for itself is never closed.
        fs, key = (self._place / name).client()
        return FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=key)

    def retried(self, action: Callable[[], Any]) -> Any:
        return retrying(action, self._place.url)

    def read(self, name: str, limit: int) -> bytes:
        return (self._place / name).read_limited(limit)

    def write(self, name: str, data: bytes) -> None:
        place = self._place / name
        fs, key = place.client()
        retrying(lambda: fs.pipe_file(key, data), place.url)

    def publish(self) -> None:
        pass

    def explained(self, error: OSError) -> LogitStoreError:
        if isinstance(error, FileNotFoundError):
            return StorageError(
                f"{self._place}: there is no such bucket. Make it first, or choose another --out."
            )
        return error if isinstance(error, LogitStoreError) else explain(error, self._place.url, 1)

    def clean_up(self) -> None:
        with suppress(Exception):  # the first failure is the one to report
            if not (self._place / GROUP_MEMBER).exists():
                fs, key = self._place.client()
                fs.rm(key, recursive=True)
