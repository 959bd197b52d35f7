"""How a file appears in a store: whole, durable, and once. This file is the crash-safety argument.

    1. write a temporary name beside the target
    2. fsync it
    3. os.link it to the final name       <- the commit point; fails if the name exists
    4. unlink the temporary name, fsync the folder

A crash before 3 leaves a temporary file that no reader looks at; after 3 the file is complete, for
its bytes were durable before anything named them. Linking, unlike renaming, never replaces: of two
workers with the same shard one wins whole, and the other's copy is dropped. Renaming is used only
for what is derived from the shards and may be written again (index and `DONE`).

A file system without hard links (exFAT, some network and FUSE mounts) gets Linux's rename that
refuses to replace, which is as atomic; one without that either is refused, never risked.

In a bucket all of it is one conditional create, and nothing needs a folder: see `objects.py`.
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
_SWEPT_TIMES = 16  # more workers than ever seal in the same second
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


class Fs(Protocol):
    """The operations a commit is made of; tests substitute one that fails or forgets."""

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None: ...
    def link(self, source: Path, target: Path) -> None: ...
    def replace(self, source: Path, target: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def sync_folder(self, path: Path) -> None: ...


class OsFs:
    """The real file system."""

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
        with path.open("xb") as f:
            for piece in pieces:
                f.write(piece)
            f.flush()
            os.fsync(f.fileno())

    def link(self, source: Path, target: Path) -> None:
        """Name it; on a file system without hard links, move it there unless the name is taken."""
        try:
            os.link(source, target)
        except OSError as e:
            if e.errno not in _NO_LINKS or not rename_if_free(source, target):
                raise

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
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux, or a C library from before 2018
        return False
    paths = (os.fsencode(source), os.fsencode(target))
    failed = rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) != 0
    if failed and ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    return not failed


def make_folder(path: Path, fs: Fs = OS_FS) -> None:
    """Make a folder, and those above it, that a power cut cannot take away again.

    Raises:
        OSError: The file system refused.
    """
    if path.is_dir():
        return
    make_folder(path.parent, fs)
    path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # a folder we may pass through but not read
        fs.sync_folder(path.parent)


def create(path: Path, pieces: Iterable[Buffer], fs: Fs = OS_FS) -> bool:
    """Commit a file that must not be there yet.

    Returns:
        True if these bytes were committed, False if the name was taken: then nothing changed.

    Raises:
        StorageError: The file system refused; nothing appeared under the name.
    """
    unnamed = temporary(path)
    try:
        fs.write_durably(unnamed, pieces)
        try:
            fs.link(unnamed, path)
            won = True
        except FileExistsError:
            won = False
        except FileNotFoundError:  # a seal swept ours away, for all that it names was there
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
    """Write a derived file of a store, replacing what was there.

    Raises:
        StorageError: The file system refused; what was there before is still there.
    """
    for is_last in (*[False] * _SWEPT_TIMES, True):
        try:
            write_whole(path, data, fs)
        except FileNotFoundError as e:  # another seal swept ours away; each does so once
            if is_last:
                raise explain(e, path) from e
        except OSError as e:
            raise explain(e, path) from e
        else:
            return


def write_whole(path: Path, data: bytes, fs: Fs = OS_FS) -> None:
    """Write a file whole or not at all, durably, replacing what was there.

    Of several writers at once one wins: each has a temporary file of its own.

    Raises:
        OSError: The file system refused; what was there before is still there.
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
    """Move a file into another folder, which is made if need be, durably.

    Raises:
        OSError: The file system refused.
    """
    make_folder(target.parent, fs)
    fs.replace(source, target)
    fs.sync_folder(target.parent)
    fs.sync_folder(source.parent)


def replace_folder(folder: Path, files: Mapping[str, bytes], fs: Fs = OS_FS) -> None:
    """Write a folder of files whole or not at all, replacing what was there.

    If a twin writes the same files meanwhile, its folder is kept.

    Raises:
        OSError: The file system refused.
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
    """Rename a folder of these files, unless a twin's has come first; others may do the same."""
    for is_last in (*[False] * _SWEPT_TIMES, True):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            fs.replace(unnamed, folder)
        except OSError as e:
            if _holds(folder, files):
                shutil.rmtree(unnamed, ignore_errors=True)
                return
            if is_last or e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    try:
        there = {path.name: path for path in folder.iterdir() if path.is_file()}
        return there.keys() == files.keys() and all(
            there[name].read_bytes() == data for name, data in files.items()
        )
    except FileNotFoundError:  # never there, or removed meanwhile
        return False


def explain(error: OSError, path: Located) -> StorageError:
    """The same failure, with what to do about it."""
    if isinstance(error, StorageError):
        return error
    what, step = {
        errno.ENOSPC: ("the disk is full", "Make room"),
        errno.EDQUOT: ("your disk quota is used up", "Make room"),
        errno.EACCES: ("no permission to write here", "Mend the folder's permissions"),
        errno.EROFS: ("the file system is read-only", "Choose another --out"),
    }.get(error.errno or 0, (f"the file system refused ({error})", "Mend that"))
    if error.errno in _NO_LINKS:
        what = f"this file system can neither hard-link nor rename without replacing ({error})"
        step = "Write to a local disk with --out and copy the finished store"
    return StorageError(
        f"{path}: {what}. Nothing half-written is visible, and every shard committed before is "
        f"good. {step}, then run the same command again: it resumes.",
        kind="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None,
    )


def temporary(path: Path) -> Path:
    """A name beside `path` that no reader looks at and no other writer uses."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _clean_up(unnamed: Path, fs: Fs) -> None:
    try:
        fs.unlink(unnamed)
    except OSError:
        return  # the first failure is the one to report
