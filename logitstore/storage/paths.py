"""Where a store lies: a folder, or a URL that fsspec understands.

`StorePath` is what both are to the rest of the program, which does not ask which of them it has:
`LocalPath` (`folder.py`) and `RemotePath` (`objects.py`) know each for itself how a file is read,
and how one is committed.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, Self

from logitstore.errors import InputError
from logitstore.storage.commit import OS_FS, TEMPORARY_PREFIX, Fs
from logitstore.storage.files import Buffer
from logitstore.storage.folder import LocalPath
from logitstore.storage.objects import RemotePath

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
#: What pathlib makes of a URL: of two slashes one is left.
_BITTEN_URL = re.compile(r"(s3a?|hf|gs|gcs|abfss?|memory|https?):/(?!/)", re.IGNORECASE)
_LOCAL = ("file", "local")


class StorePath(Protocol):
    """A place: a folder or a prefix in a bucket, a file or an object.

    As text it is what a user would type. Where there is no such file or object, what reads it
    raises FileNotFoundError; where the file system or the service refuses, another OSError.
    `fs` is what writes in a folder, for tests that let it fail.
    """

    @property
    def is_remote(self) -> bool:
        """Whether every look is a request over a network: ask seldom, and many at once."""

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def parent(self) -> Self:
        """The place that this one is in."""

    def __truediv__(self, name: str, /) -> Self: ...

    def with_name(self, name: str, /) -> Self:
        """The place beside this one that has another name."""

    def resolve(self) -> Self:
        """The same place by the one name that it has for every process."""

    def exists(self) -> bool:
        """Whether anything is there."""

    def is_file(self) -> bool:
        """Whether a file or an object is there."""

    def is_symlink(self) -> bool:
        """Whether it is a link to another place, which may not be there."""

    def names(self) -> list[str]:
        """What is right inside, sorted. (A prefix of a bucket that has nothing is empty.)"""

    def signs(self) -> dict[str, str]:
        """What is right inside, each with something that changes when it is written; or nothing."""

    def size_bytes(self) -> int:
        """Bytes of the file or object."""

    def read_bytes(self) -> bytes:
        """All bytes, of what is known to be small."""

    def read_limited(self, limit: int) -> bytes:
        """All bytes; ValueError if they are more than `limit`, or it is no ordinary file."""

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes `start` up to `stop`, fewer where the end comes before."""

    def pieces(self) -> Iterator[bytes]:
        """All bytes, some megabytes at a time."""

    def sha256(self) -> str:
        """SHA-256 of all bytes, in hex."""

    def create(self, pieces: Iterable[Buffer], fs: Fs = OS_FS) -> bool:
        """Commit a file that must not be there yet, whole or not at all.

        Returns:
            True if these bytes were committed, False if the name was taken: then nothing changed.
            (In a bucket also True if a twin committed the same bytes: who was first is not told.)
        """

    def overwrite(self, data: bytes, fs: Fs = OS_FS) -> None:
        """Write a file whole or not at all, replacing what was there."""

    def write_bytes(self, data: bytes, /) -> object:
        """Write a file in place, for what may be lost or half there."""

    def refresh(self, data: bytes) -> None:
        """Change the sign (see `signs`) of a file that begins with these bytes.

        A file is not made anew; an object is, for it has no time that could be set.
        """

    def make_folder(self, fs: Fs = OS_FS) -> None:
        """Make a folder and those above it, where there are such things."""

    def write_folder(self, files: Mapping[str, bytes], fs: Fs = OS_FS) -> None:
        """Write a few small files as this folder, replacing what was there."""

    def move_to(self, target: Self, fs: Fs = OS_FS) -> None:
        """Move a file."""

    def delete(self) -> None:
        """Remove it, if it is there."""

    def check_writable(self) -> None:
        """Refuse, by InputError, a kind of place where no store can be written. Asks nobody."""

    def check_access(self) -> None:
        """Refuse a place that is a file or below one, or where writing is not allowed.

        As far as can be told without writing; by MismatchError or StorageError.
        """

    def check_conditional(self, data: bytes) -> None:
        """See that this file, which is there with these bytes, cannot be created again."""


def store_path(place: str | os.PathLike[str] | StorePath) -> StorePath:
    """Find out which place a user named. Asks nobody.

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
        return LocalPath(text)
    protocol, rest = text.split("://", 1)
    rest = rest.rstrip("/")
    if protocol.lower() in _LOCAL:
        return LocalPath(rest or "/")
    if not rest.strip("/"):
        raise InputError(f"{text}: names no store. Give its whole address, as in s3://bucket/name.")
    return RemotePath(f"{protocol.lower()}://{rest}")


def to_write(place: str | os.PathLike[str] | StorePath) -> StorePath:
    """Find out which place a user named for a store to be made.

    Raises:
        InputError: Stores cannot be written there.
    """
    path = store_path(place)
    path.check_writable()
    return path


def local_path(place: str | os.PathLike[str], what: str, option: str) -> Path:
    """Find out which folder or file of this machine a user named, where no URL will do.

    Args:
        place: As it was typed.
        what: What lies or will lie there, for the message: "an export".
        option: Where to name another: "--out".

    Raises:
        InputError: It is a URL of a bucket.
    """
    path = store_path(place)
    if not isinstance(path, Path):  # the difference that is asked for
        raise InputError(
            f"{path}: is in a bucket, but {what} must be on this machine. Name a place here with "
            f"{option}, and copy from or to the bucket with its own tools."
        )
    return path


def names_in_or_none(folder: StorePath) -> list[str]:
    """List what is right inside a folder; nothing if it is not there or cannot be listed."""
    try:
        return folder.names()
    except OSError:
        return []


def remove_temporaries(folder: StorePath) -> None:
    """Delete what crashed writers left behind.

    Only when all shards are there: then a writer that is still at work can lose nothing by it.
    """
    for name in folder.names():
        if name.startswith(TEMPORARY_PREFIX):
            (folder / name).delete()


def local(path: StorePath) -> Path:
    """Narrow to a file of this machine, for callers that fetched objects before.

    Only a file can be mapped into memory, so whoever opens an object's shard hands over its copy.
    """
    assert isinstance(path, Path), f"{path} is an object: fetch it first"
    return path
