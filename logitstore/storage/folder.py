"""Files and folders of this machine as the place of a store: the counterpart of `objects.py`.

A `LocalPath` is a `pathlib.Path` that also has the operations of `StorePath`. `commit.py` commits
its files, and `files.py` reads those that may come from strangers.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import PosixPath
from typing import Self

from logitstore.errors import MismatchError
from logitstore.storage import commit
from logitstore.storage.commit import OS_FS, Fs
from logitstore.storage.files import Buffer, file_pieces, file_sha256, open_file, read_file

#: What is appended to the name of a store for the file beside it.
_LONGEST_BESIDE = ".journal.jsonl"


class LocalPath(PosixPath):
    """A file or a folder of this machine; see `StorePath` for what each operation promises."""

    __slots__ = ()

    #: No operation is a request over a network.
    is_remote = False

    # -- reading ---------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(os.listdir(self))

    def signs(self) -> dict[str, str]:
        sign_of = {}
        for entry in os.scandir(self) if self.is_dir() else ():
            with suppress(FileNotFoundError):  # deleted since it was listed: a change, too
                sign_of[entry.name] = str(entry.stat().st_mtime_ns)
        return sign_of

    def size_bytes(self) -> int:
        return self.stat().st_size

    def read_range(self, start: int, stop: int) -> bytes:
        with open_file(self) as f:
            return os.pread(f.fileno(), stop - start, start)

    def read_limited(self, limit: int) -> bytes:
        return read_file(self, limit)

    def pieces(self) -> Iterator[bytes]:
        return file_pieces(self)

    def sha256(self) -> str:
        return file_sha256(self)

    # -- writing ---------------------------------------------------------------------------------

    def create(self, pieces: Iterable[Buffer], fs: Fs = OS_FS) -> bool:
        return commit.create(self, pieces, fs)

    def overwrite(self, data: bytes, fs: Fs = OS_FS) -> None:
        commit.overwrite(self, data, fs)

    def refresh(self, data: bytes) -> None:
        os.utime(self)

    def make_folder(self, fs: Fs = OS_FS) -> None:
        commit.make_folder(self, fs)

    def write_folder(self, files: Mapping[str, bytes], fs: Fs = OS_FS) -> None:
        commit.replace_folder(self, files, fs)

    def move_to(self, target: Self, fs: Fs = OS_FS) -> None:
        commit.move(self, target, fs)

    def delete(self) -> None:
        if self.is_dir() and not self.is_symlink():
            shutil.rmtree(self, ignore_errors=True)
        else:
            self.unlink(missing_ok=True)

    # -- asking beforehand -----------------------------------------------------------------------

    def check_writable(self) -> None:
        """Accept every folder: stores can be written in folders."""

    def check_access(self) -> None:
        if self.is_symlink() and not self.exists():
            raise MismatchError(
                f"{self}: is a link to {os.readlink(self)}, where nothing is. Make that folder, or "
                "choose another --out."
            )
        places = (self, *self.absolute().parents)
        nearest = next(p for p in places if p.exists())
        if not nearest.is_dir():
            raise MismatchError(f"{nearest}: is a file, not a folder. Choose another --out.")
        most = os.pathconf(nearest, "PC_NAME_MAX") - len(_LONGEST_BESIDE)
        if len(os.fsencode(self.name)) > most:
            raise MismatchError(
                f"{self}: its name has {len(os.fsencode(self.name))} bytes, at most {most} leave "
                "room for the names beside it. Choose a shorter --out."
            )
        if not os.access(nearest, os.W_OK | os.X_OK):
            denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            raise commit.explain(denied, nearest)

    def check_conditional(self, data: bytes) -> None:
        """Accept every file system: a hard link never replaces a file."""
