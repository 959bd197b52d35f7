"""Commit a file to a store: whole, durably, and once. This is the argument for crash safety.

    1. write a temporary name beside the target
    2. fsync it
    3. os.link it to the final name       <- the commit point; fails if the name exists
    4. unlink the temporary name, fsync the folder

A crash before 3 leaves a temporary file that no reader opens. After 3 the file is complete, since
its bytes were durable before it had its final name. Linking, unlike renaming, never replaces a
file: of two workers with the same shard one wins, and the other's copy is dropped. Renaming is used
only for files that are derived from the shards and may be written again (index and `DONE`).

On a file system without hard links (exFAT, some network and FUSE mounts) Linux's rename that never
replaces is used instead, which is as atomic. A file system without that either is rejected.

In a bucket one conditional create does all of this, and no folder is needed: see `objects.py`.
"""

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from logitstore.errors import Located, StorageError
from logitstore.storage.files import Buffer

TEMPORARY_PREFIX = ".tmp-"
_SWEPT_TIMES = 16  # more than the workers that ever seal a store in the same second
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
#: What file systems say that have no links for these two names, or for this user.
_LINK_REFUSED = (*_NO_LINKS, errno.EINVAL, errno.EACCES, errno.EXDEV)
#: What systems say that have no rename which never replaces.
_NO_SUCH_RENAME = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


class Fs(Protocol):
    """A file system with the operations of a commit; tests use one that fails or loses writes."""

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None: ...
    def link(self, source: Path, target: Path) -> None: ...
    def replace(self, source: Path, target: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def sync_folder(self, path: Path) -> None: ...


class OsFs:
    """A file system: the operating system's own."""

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
        with path.open("xb") as f:
            for piece in pieces:
                f.write(piece)
            f.flush()
            os.fsync(f.fileno())

    def link(self, source: Path, target: Path) -> None:
        """Link a file to its final name; without hard links, rename it unless the name is taken."""
        try:
            os.link(source, target)
        except OSError as e:
            if e.errno not in _LINK_REFUSED:
                raise
            if not rename_if_free(source, target):
                raise OSError(errno.EOPNOTSUPP, e.strerror, str(target)) from e

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


OS_FS = OsFs()


def rename_if_free(source: Path, target: Path) -> bool:
    """Rename, atomically, unless `target` exists (Linux's renameat2 with RENAME_NOREPLACE).

    Returns:
        Whether it was renamed; False where neither the system nor the file system can.

    Raises:
        FileExistsError: The name is taken; nothing changed.
        OSError: The file system failed otherwise.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux, or a C library from before 2018
        return False
    paths = (os.fsencode(source), os.fsencode(target))
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_SUCH_RENAME:
        return False
    raise OSError(code, os.strerror(code), str(target))  # a FileExistsError, if it is one


def make_folder(path: Path, fs: Fs = OS_FS) -> None:
    """Make a folder and those above it, durably: a power cut cannot undo it.

    Raises:
        OSError: The file system failed.
    """
    if path.is_dir():
        return
    make_folder(path.parent, fs)
    path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # a folder we may pass through but not read
        fs.sync_folder(path.parent)


def create(path: Path, pieces: Iterable[Buffer], fs: Fs = OS_FS) -> bool:
    """Commit a file that must not exist yet.

    Returns:
        True if these bytes were committed, False if the name was taken: then nothing changed.

    Raises:
        StorageError: The file system failed; nothing appeared under the name.
    """
    unnamed = temporary(path)
    try:
        fs.write_durably(unnamed, pieces)
        try:
            fs.link(unnamed, path)
            won = True
        except FileExistsError:
            won = False
        except FileNotFoundError:  # a seal deleted our temporary file, as all shards existed
            if not path.exists():
                raise
            won = False
        fs.unlink(unnamed)
        fs.sync_folder(path.parent)
    except OSError as e:
        _clean_up(unnamed, fs)
        raise explain(e, path) from e
    return won


def overwrite(path: Path, data: bytes, fs: Fs = OS_FS) -> None:
    """Write a derived file of a store, replacing an older one.

    Raises:
        StorageError: The file system failed; the older file is unchanged.
    """
    for is_last in (*[False] * _SWEPT_TIMES, True):
        try:
            write_whole(path, data, fs)
        except FileNotFoundError as e:  # another worker's seal deleted ours; each does so once
            if is_last:
                raise explain(e, path) from e
        except OSError as e:
            raise explain(e, path) from e
        else:
            return


def write_whole(path: Path, data: bytes, fs: Fs = OS_FS) -> None:
    """Write a file whole or not at all, durably, replacing an older one.

    Of several concurrent writers one wins: each has a temporary file of its own.

    Raises:
        OSError: The file system failed; the older file is unchanged.
    """
    unnamed = temporary(path)
    try:
        fs.write_durably(unnamed, [data])
        fs.replace(unnamed, path)
        fs.sync_folder(path.parent)
    except OSError:
        _clean_up(unnamed, fs)
        raise


def move(source: Path, target: Path, fs: Fs = OS_FS) -> None:
    """Move a file into another folder, which is made if it does not exist, durably.

    Raises:
        OSError: The file system failed.
    """
    make_folder(target.parent, fs)
    fs.replace(source, target)
    fs.sync_folder(target.parent)
    fs.sync_folder(source.parent)


def replace_folder(folder: Path, files: Mapping[str, bytes], fs: Fs = OS_FS) -> None:
    """Write a folder of files whole or not at all, replacing an older one.

    If another worker writes the same files meanwhile, its folder is kept.

    Raises:
        OSError: The file system failed.
    """
    unnamed = temporary(folder)
    try:
        unnamed.mkdir()
        for name, data in files.items():
            fs.write_durably(unnamed / name, [data])
        fs.sync_folder(unnamed)
        _put_in_place(unnamed, folder, files, fs)
        fs.sync_folder(folder.parent)
    except OSError:
        shutil.rmtree(unnamed, ignore_errors=True)
        raise


def _put_in_place(unnamed: Path, folder: Path, files: Mapping[str, bytes], fs: Fs) -> None:
    """Rename a folder to its final name, unless one with the same files is there.

    One that is whole is never away, not even for a moment: another process may be reading it.
    """
    for is_last in (*[False] * _SWEPT_TIMES, True):
        try:
            fs.replace(unnamed, folder)
        except OSError as e:
            if _holds(folder, files):
                shutil.rmtree(unnamed, ignore_errors=True)
                return
            if is_last or e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _remove_other(folder, files)
        else:
            return


def _remove_other(folder: Path, files: Mapping[str, bytes]) -> None:
    """Remove a folder with other files; one with these, put there since it was looked at, stays."""
    aside = temporary(folder)
    with suppress(OSError):  # gone, or taken meanwhile: whoever renames next finds out
        folder.rename(aside)
        if _holds(aside, files):
            aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    try:
        paths = {path.name: path for path in folder.iterdir() if path.is_file()}
        return paths.keys() == files.keys() and all(
            paths[name].read_bytes() == data for name, data in files.items()
        )
    except FileNotFoundError:  # it never existed, or was removed meanwhile
        return False


def explain(error: OSError, path: Located) -> StorageError:
    """Turn a failure into a StorageError that says what to do about it."""
    if isinstance(error, StorageError):
        return error
    reason, step = why_failed(error)
    return StorageError(
        f"{path}: {reason}. Nothing half-written is visible, and every shard committed before is "
        f"good. {step}, then run the same command again: it resumes.",
        kind=failure_kind(error),
    )


def failure_kind(error: OSError) -> str | None:
    """Return the kind of the StorageError for a failure; None for the usual one."""
    return "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None


def why_failed(error: OSError, option: str = "--out") -> tuple[str, str]:
    """Say why a file system fails, and what to do about it."""
    if error.errno in _NO_LINKS:
        return (
            f"this file system can neither hard-link nor rename without replacing ({error})",
            f"Write to a local disk with {option} and copy the finished store",
        )
    return {
        errno.ENOSPC: ("the disk is full", "Make room"),
        errno.EDQUOT: ("your disk quota is used up", "Make room"),
        errno.EACCES: ("no permission to write here", "Fix the folder's permissions"),
        errno.EROFS: ("the file system is read-only", f"Choose another {option}"),
        errno.ENAMETOOLONG: ("its name is too long", f"Choose a shorter {option}"),
        errno.ENOENT: (
            "its folder is gone (was the store moved, or removed?)",
            f"Put it back, or name its new place with {option}",
        ),
    }.get(error.errno or 0, (f"the file system refused ({error})", "Fix that"))


def temporary(path: Path) -> Path:
    """Make up a name beside `path` that no reader opens and no other writer uses."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _clean_up(unnamed: Path, fs: Fs) -> None:
    try:
        fs.unlink(unnamed)
    except OSError:
        return  # the caller reports the first failure, not this one
