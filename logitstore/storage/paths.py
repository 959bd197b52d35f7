"""Where a store lies: a folder, or a URL that fsspec understands."""

import os
import re
from pathlib import Path

from logitstore.errors import InputError
from logitstore.storage.objects import RemotePath

#: A folder or a prefix in a bucket; a file or an object.
StorePath = Path | RemotePath

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LOCAL = ("file", "local")


def store_path(place: "str | os.PathLike[str] | RemotePath") -> StorePath:
    """The folder or URL that a user named. Asks nobody.

    Raises:
        InputError: A URL that cannot be the place of a store.
    """
    if isinstance(place, RemotePath):
        return place
    text = os.fspath(place)
    if "::" in text and "://" in text:
        raise InputError(
            f"{text}: chained URLs are not read; shards of a bucket are kept on the local disk as "
            "it is. Give the last part alone."
        )
    if not _URL.match(text):
        return Path(text)
    protocol, rest = text.split("://", 1)
    rest = rest.rstrip("/")
    if protocol.lower() in _LOCAL:
        return Path(rest or "/")
    if not rest.strip("/"):
        raise InputError(f"{text}: names no store. Give its whole address, as in s3://bucket/name.")
    return RemotePath(f"{protocol.lower()}://{rest}")


def to_write(place: "str | os.PathLike[str] | RemotePath") -> StorePath:
    """Like `store_path`, for a store that is to be made there.

    Raises:
        InputError: Stores cannot be written there.
    """
    path = store_path(place)
    if isinstance(path, RemotePath):
        path.check_writable()
    return path


def names_in(folder: StorePath) -> list[str]:
    """What is right inside a folder.

    Raises:
        OSError: It cannot be listed. (A prefix of a bucket that has nothing is an empty folder.)
    """
    return folder.names() if isinstance(folder, RemotePath) else sorted(os.listdir(folder))


def names_in_or_none(folder: StorePath) -> list[str]:
    """What is right inside a folder; nothing if it is not there or cannot be listed."""
    try:
        return names_in(folder)
    except OSError:
        return []


def size_bytes(file: StorePath) -> int:
    """Of a file or object.

    Raises:
        OSError: It is not there, or cannot be asked.
    """
    return file.size_bytes() if isinstance(file, RemotePath) else file.stat().st_size


def local(path: StorePath) -> Path:
    """The same, where only a file will do; for callers that fetched objects before."""
    assert isinstance(path, Path), f"{path} is an object: fetch it first"
    return path
