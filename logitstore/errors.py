"""Everything raised on purpose, grouped by what a handler would do about it.

    LogitStoreError
    |-- NotAStoreError        (also FileNotFoundError)  the path holds no store: another path
    |-- FormatError           (also ValueError)  a version this reader does not know: upgrade
    |-- IncompleteStoreError  (also ValueError)  the capture has not finished: resume it
    |-- MismatchError         (also ValueError)  store and request disagree: change one of them
    |-- CorruptStoreError                        bytes are not what was committed: repair
    |-- InputError            (also ValueError)  an unusable dataset, model or flag: mend it
    |-- MissingLibraryError   (also ImportError) an optional library is not installed: install it
    |-- StorageError          (also OSError)     the disk or folder refuses: make room, resume
    `-- BusyError                                another process writes here: share, or wait

A message says where, what is wrong, what was expected and found, then what to do next.
"""

from typing import Protocol


class Located(Protocol):
    """A file or an object of a bucket: its name, and as text its whole address."""

    @property
    def name(self) -> str: ...


class LogitStoreError(Exception):
    """Base of every error raised on purpose."""


class NotAStoreError(LogitStoreError, FileNotFoundError):
    """The path holds no store."""


class FormatError(LogitStoreError, ValueError):
    """A store written in a format version that this reader does not know."""


class IncompleteStoreError(LogitStoreError, ValueError):
    """The capture that writes this store has not finished."""


class MismatchError(LogitStoreError, ValueError):
    """The store was made from something other than what is asked of it."""


class CorruptStoreError(LogitStoreError):
    """Bytes on disk are not the bytes that were committed.

    Attributes:
        path: The damaged file, or object of a bucket.
        rows: First and last dataset row that cannot be trusted, where that is known.
    """

    def __init__(self, message: str, *, path: Located, rows: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.rows = rows


class InputError(LogitStoreError, ValueError):
    """A dataset, a model or a setting from the user that cannot be used as it is."""


class MissingLibraryError(LogitStoreError, ImportError):
    """What is asked for needs a library that is an extra, and it is not installed."""


class StorageError(LogitStoreError, OSError):
    """The file system refused: full, read-only, or without a needed operation."""


class BusyError(LogitStoreError):
    """Another process is at work on the same store, and does not share it."""


def in_a_line(error: BaseException) -> str:
    """What a library's error says, as part of a message: its class and its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return f"{type(error).__name__}: {first.rstrip('.')}" if first else type(error).__name__
