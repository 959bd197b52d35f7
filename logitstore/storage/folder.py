"""Files and folders of this machine as the place of a store: the counterpart of `objects.py`.

A `LocalPath` is a `pathlib.Path` that also has the operations of `StorePath`. `commit.py` commits
its files, and `files.py` reads those that may come from strangers.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import Self

from logitstore.errors import MismatchError
from logitstore.storage import commit
from logitstore.storage.commit import OS_FS, Fs
from logitstore.storage.files import (
    TICK_NS,
    Buffer,
    file_pieces,
    file_sha256,
    open_file,
    read_file,
    sign_of,
)
from logitstore.storage.trial import explain_trial, try_beside

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

    def stamps(self) -> dict[str, str]:
        stamp_of, until = {}, time.time_ns() - TICK_NS
        for entry in os.scandir(self) if self.is_dir() else ():
            with suppress(OSError):  # deleted since it was listed, or a link to nothing
                sign = sign_of(entry.stat())
                if max(sign.mtime_ns, sign.ctime_ns) <= until:
                    stamp_of[entry.name] = " ".join(map(str, sign))
        return stamp_of

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

    def check_access(self, option: str = "--out") -> None:
        if os.path.islink(self) and not os.path.exists(self):
            raise MismatchError(
                f"{self}: is a link to {os.readlink(self)}, where nothing is. Make that folder, or "
                f"choose another {option}."
            )
        nearest = self._nearest()
        if not nearest.is_dir():
            raise MismatchError(f"{nearest}: is a file, not a folder. Choose another {option}.")
        self._check_names(nearest, option)
        if not os.access(nearest, os.W_OK | os.X_OK):
            is_fixed = os.statvfs(nearest).f_flag & os.ST_RDONLY
            code = errno.EROFS if is_fixed else errno.EACCES
            raise explain_trial(OSError(code, os.strerror(code)), nearest, option)

    def try_writing(self, option: str = "--out", *, commits: bool = True, fs: Fs = OS_FS) -> None:
        self.check_access(option)
        nearest = self._nearest()
        try:
            try_beside(nearest / "trial", fs, commits=commits)
        except OSError as e:
            raise explain_trial(e, nearest, option) from e

    def _nearest(self) -> Path:
        """Return this place, or the nearest above it where something is."""
        # Not their own `exists`, which fails for a name that is too long.
        own = self if self.name else self.absolute()
        return next(p for p in (own, *self.absolute().parents) if os.path.exists(p))

    def _check_names(self, nearest: Path, option: str) -> None:
        """Check the length of every name that is to be made, and of those beside the last.

        Raises:
            MismatchError: One is too long.
        """
        most = os.pathconf(nearest, "PC_NAME_MAX")
        *above, own = self.absolute().relative_to(nearest.absolute()).parts or (self.name,)
        for name, room in (*((n, most) for n in above), (own, most - len(_LONGEST_BESIDE))):
            if (size := len(os.fsencode(name))) > room:
                raise MismatchError(
                    f"{self}: its name has {size} bytes, at most {room} leave room for the names "
                    f"beside it. Choose a shorter {option}."
                )

    def check_conditional(self, data: bytes) -> None:
        """Accept every file system: a hard link never replaces a file."""
