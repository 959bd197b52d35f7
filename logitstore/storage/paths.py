"""The place of a store: a folder, or a URL that fsspec understands.

`StorePath` is the interface of both to the rest of the program, which never asks which of them it
has. `LocalPath` (`folder.py`) and `RemotePath` (`objects.py`) each implement how a file is read and
how one is committed. `store_path` makes one of what a user typed.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from logitstore.errors import InputError, StorageError
from logitstore.storage.commit import OS_FS, TEMPORARY_PREFIX, Fs
from logitstore.storage.files import Buffer
from logitstore.storage.folder import LocalPath
from logitstore.storage.objects import TRIAL_PREFIX, RemotePath

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
#: A URL that went through pathlib, which leaves one of two slashes.
_BITTEN_URL = re.compile(r"(s3a?|hf|gs|gcs|abfss?|memory|https?):/(?!/)", re.IGNORECASE)
_LOCAL = ("file", "local")


class StorePath(Protocol):
    """A place of a store: a folder or a prefix in a bucket, a file or an object.

    As text it is what a user would type. If there is no such file or object, reading raises
    FileNotFoundError; if the file system or the service fails, another OSError. `fs` writes in a
    folder, for tests that make it fail; buckets ignore it.
    """

    @property
    def is_remote(self) -> bool:
        """Tell whether every operation is a request over a network: few, and many together."""

    @property
    def name(self) -> str:
        """Return the last part of the path."""

    @property
    def parent(self) -> Self:
        """Return the place that contains this one."""

    def __truediv__(self, name: str, /) -> Self: ...

    def with_name(self, name: str, /) -> Self:
        """Return the place beside this one that has another name."""

    def resolve(self) -> Self:
        """Return the same place by the one name that it has for every process."""

    def exists(self) -> bool:
        """Tell whether anything exists at this place."""

    def is_file(self) -> bool:
        """Tell whether a file or an object exists at this place."""

    def is_symlink(self) -> bool:
        """Tell whether it is a link to another place, which may not exist."""

    def names(self) -> list[str]:
        """List the names directly inside, sorted; none for a prefix of a bucket without objects."""

    def signs(self) -> dict[str, str]:
        """Map each name directly inside to a sign, a text that changes when it is written.

        Nothing exists: an empty map.
        """

    def stamps(self) -> dict[str, str]:
        """Map each name directly inside to a stamp, which nothing that is written later can have.

        Names without one are left out: files that were written so lately that the clock may not
        tell the next write, and objects of a service that says nothing of what they hold.
        """

    def size_bytes(self) -> int:
        """Return the size of the file or object in bytes."""

    def read_bytes(self) -> bytes:
        """Read all bytes of a file that is known to be small."""

    def read_limited(self, limit: int) -> bytes:
        """Read all bytes; raise ValueError if they exceed `limit` or the file is not ordinary."""

    def read_range(self, start: int, stop: int) -> bytes:
        """Read the bytes from `start` up to `stop`, fewer if the file ends before."""

    def pieces(self) -> Iterator[bytes]:
        """Read all bytes, a few megabytes at a time."""

    def sha256(self) -> str:
        """Compute the SHA-256 of all bytes, in hex."""

    def create(self, pieces: Iterable[Buffer], fs: Fs = OS_FS) -> bool:
        """Commit a file that must not exist yet, whole or not at all.

        Returns:
            True if these bytes were committed, False if the name was taken: then nothing changed.
            In a bucket also True if another worker committed the same bytes first, since the two
            cases cannot be told apart.
        """

    def overwrite(self, data: bytes, fs: Fs = OS_FS) -> None:
        """Write a file whole or not at all, replacing an older one."""

    def write_bytes(self, data: bytes, /) -> object:
        """Write a file in place, for content that may be lost or half-written."""

    def refresh(self, data: bytes) -> None:
        """Change the sign (see `signs`) of a file that begins with these bytes.

        A file gets a new time; an object is written anew, since its time cannot be set.
        """

    def make_folder(self, fs: Fs = OS_FS) -> None:
        """Make a folder and those above it; in a bucket, which has no folders, do nothing."""

    def write_folder(self, files: Mapping[str, bytes], fs: Fs = OS_FS) -> None:
        """Write a few small files as this folder, replacing an older one."""

    def move_to(self, target: Self, fs: Fs = OS_FS) -> None:
        """Move a file to another place of the same kind."""

    def delete(self) -> None:
        """Delete the file or object, if it exists."""

    def check_writable(self) -> None:
        """Raise InputError for a kind of place where no store can be written. Sends no request."""

    def check_access(self, option: str = "--out") -> None:
        """Reject a place that is a file or below one, or where writing is not allowed.

        It checks what can be known without writing.

        Args:
            option: The option to name another place with, for the message.

        Raises:
            MismatchError: It is a file, or below one.
            StorageError: Writing is not allowed.
        """

    def try_writing(self, option: str = "--out", *, commits: bool = True, fs: Fs = OS_FS) -> None:
        """Write something small here, and remove it again, to learn what would fail later.

        Args:
            option: The option to name another place with, for the message.
            commits: Whether a name must be given only once, as that of a shard is.
            fs: Writes in a folder.

        Raises:
            MismatchError: It is a file, or below one.
            StorageError: Nothing can be written here, or only in a way that loses shards.
        """

    def check_conditional(self, data: bytes) -> None:
        """Check that this file, which exists with these bytes, cannot be created again."""


def store_path(place: str | os.PathLike[str] | StorePath) -> StorePath:
    """Parse the place that a user named, without a look at it.

    Raises:
        InputError: A URL that cannot be the place of a store.
    """
    if not isinstance(place, str | os.PathLike):
        return place
    text = os.fspath(place)
    if "::" in text and "://" in text:
        raise InputError(
            f"{text}: chained URLs are not read; shards of a bucket are kept on the local disk as "
            "it is. Give the last part alone."
        )
    if _BITTEN_URL.match(text):
        url = text.replace(":/", "://", 1)
        raise InputError(
            f"{text}: a URL has two slashes after its colon, and pathlib.Path takes one away. Give "
            f"the text {url} instead."
        )
    if not _URL.match(text):
        return _named(_at_home(LocalPath(text)) if text.startswith("~") else LocalPath(text))
    protocol, rest = text.split("://", 1)
    rest = rest.rstrip("/")
    if protocol.lower() in _LOCAL:
        return LocalPath(rest or "/")
    if not rest.strip("/"):
        raise InputError(f"{text}: names no store. Give its whole address, as in s3://bucket/name.")
    return RemotePath(f"{protocol.lower()}://{rest}")


def _named(path: LocalPath) -> LocalPath:
    """Give a folder that was typed as `.` or `..` its name: the journal beside it has that too."""
    return path.resolve() if path.name in ("", "..") else path


def _at_home(path: LocalPath) -> LocalPath:
    """Put the home folder in the place of a leading `~`, as shells do, but not behind `--out=`."""
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user: then it is a name like any other
        return path


def to_write(place: str | os.PathLike[str] | StorePath) -> StorePath:
    """Parse the place that a user named for a store to be written.

    Raises:
        InputError: Stores cannot be written there.
    """
    path = store_path(place)
    path.check_writable()
    return path


def local_path(place: str | os.PathLike[str], what: str, option: str) -> LocalPath:
    """Parse the folder or file of this machine that a user named, where a URL is impossible.

    Args:
        place: The path as it was typed.
        what: The kind of file there, for the message: "an export".
        option: The option to name another with, for the message: "--out".

    Raises:
        InputError: It is a URL of a bucket.
    """
    path = store_path(place)
    if not isinstance(path, LocalPath):  # the difference that is asked for
        raise InputError(
            f"{path}: is in a bucket, but {what} must be on this machine. Name a place here with "
            f"{option}, and copy from or to the bucket with its own tools."
        )
    return path


def names_in_or_none(folder: StorePath) -> list[str]:
    """List the names directly inside a folder; none if it cannot be listed or does not exist."""
    try:
        return folder.names()
    except OSError:
        return []


def remove_temporaries(folder: StorePath) -> None:
    """Delete the temporary files of crashed writers.

    Call it only when all shards exist: then a writer that is still running loses nothing by it.
    """
    for name in folder.names():
        if name.startswith(TRIAL_PREFIX):
            with suppress(StorageError):  # it is there because nothing may be deleted here
                (folder / name).delete()
        elif name.startswith(TEMPORARY_PREFIX):
            (folder / name).delete()


def local(path: StorePath) -> Path:
    """Narrow a path to a file of this machine, for callers that have fetched objects before.

    Only a file can be read in parts at once, so a shard in a bucket is opened by its local copy.
    """
    assert isinstance(path, Path), f"{path} is an object: fetch it first"
    return path
