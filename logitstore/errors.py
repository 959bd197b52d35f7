"""The errors that are raised on purpose, grouped by what a handler would do about them.

    LogitStoreError
    |-- NotAStoreError        (also FileNotFoundError)  the path holds no store: another path
    |-- FormatError           (also ValueError)  a version this reader does not know: upgrade
    |-- IncompleteStoreError  (also ValueError)  the capture has not finished: resume it
    |-- MismatchError         (also ValueError)  store and request disagree: change one of them
    |-- CorruptStoreError                        bytes are not what was committed: repair
    |-- InputError            (also ValueError)  an unusable dataset, model or flag: fix it
    |   `-- WrongTypeError    (also TypeError)   an argument from Python: give another
    |-- MissingLibraryError   (also ImportError) an optional library is not installed: install it
    |-- StorageError          (also OSError)     the disk or folder fails: make room, resume
    `-- BusyError                                another process writes here: share, or wait

A message names the place, what is wrong, what was expected and found, then what to do next.

Every error has a `kind`, a short code that stays the same from version to version, so that a
caller need not match the text. The first kind of a class is its usual one; the others are for cases
that a caller would handle in another way.

    NotAStoreError        not-a-store
    FormatError           format
    IncompleteStoreError  incomplete
    MismatchError         mismatch; dataset-changed: the dataset is another than it was;
                          no-common-row: stores to learn from together have no text in common
    CorruptStoreError     corrupt; missing-file: a file of the store is gone
    InputError            input; usage: a command line that cannot be understood;
                          out-of-memory: the device has no room for one sequence;
                          lost-rows: no row, or too few, can be used; self-test: records, text
                          and labels do not belong together; untrained: a run that trained
                          nothing; own-loss: a loss of the user's own that cannot be trained with;
                           one-teacher: a loss that cannot learn from these several stores;
                          engine: what runs the teacher (vLLM, a server) fails, is of an unknown
                          version, or gives too little
    MissingLibraryError   missing-library
    StorageError          storage; disk-full: no space, or a quota is used up
    BusyError             busy

With `--json` both programs print it, `{"error": {"kind": "incomplete", "message": "…"}}`. A command
that a signal stopped then has the kind `stopped`.
"""

import sys
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol


class Located(Protocol):
    """A file or an object of a bucket, with its name; as text it is its whole address."""

    @property
    def name(self) -> str: ...


class LogitStoreError(Exception):
    """The base class of every error that is raised on purpose.

    Attributes:
        kind: A short code for the case; by default the first of the class.
    """

    #: Every kind that an error of this class may have, the usual one first.
    kinds: ClassVar[tuple[str, ...]] = ("error",)

    def __init__(self, *args: object, kind: str | None = None) -> None:
        super().__init__(*args)
        self.kind = kind or self.kinds[0]
        assert self.kind in self.kinds, self.kind

    def facts(self) -> dict[str, Any]:
        """Describe the error as JSON, without its message."""
        return {"kind": self.kind}


class NotAStoreError(LogitStoreError, FileNotFoundError):
    """An error for a path that holds no store."""

    kinds = ("not-a-store",)


class FormatError(LogitStoreError, ValueError):
    """An error for a store in a format version that this reader does not know."""

    kinds = ("format",)


class IncompleteStoreError(LogitStoreError, ValueError):
    """An error for a store whose capture has not finished."""

    kinds = ("incomplete",)


class MismatchError(LogitStoreError, ValueError):
    """An error for a store that was made with other settings or data than the request needs."""

    kinds = ("mismatch", "dataset-changed", "no-common-row")


class CorruptStoreError(LogitStoreError):
    """An error for a damaged file: its bytes are not the bytes that were committed.

    Attributes:
        path: The damaged file, or object of a bucket.
        rows: First and last dataset row that cannot be trusted; None if unknown.
    """

    kinds = ("corrupt", "missing-file")

    def __init__(
        self,
        message: str,
        *,
        path: Located,
        rows: tuple[int, int] | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message, kind=kind)
        self.path = path
        self.rows = rows

    def facts(self) -> dict[str, Any]:
        """Describe the error as JSON, without its message: also the file and its rows."""
        rows = None if self.rows is None else list(self.rows)
        return super().facts() | {"path": str(self.path), "rows": rows}


class InputError(LogitStoreError, ValueError):
    """An error for a dataset, a model or a setting from the user that cannot be used as it is."""

    kinds = (
        "input",
        "usage",
        "out-of-memory",
        "lost-rows",
        "self-test",
        "untrained",
        "own-loss",
        "one-teacher",
        "engine",
    )


class WrongTypeError(InputError, TypeError):
    """An error for an argument of a type that it cannot have, or of a name that there is not."""


class MissingLibraryError(LogitStoreError, ImportError):
    """An error for a request that needs an optional library, which is not installed."""

    kinds = ("missing-library",)


class StorageError(LogitStoreError, OSError):
    """An error of the file system: it is full, read-only, or lacks a needed operation."""

    kinds = ("storage", "disk-full")


class BusyError(LogitStoreError):
    """An error for a store that another process is writing and does not share."""

    kinds = ("busy",)


def check_installed(library: str, needed_by: str, extra: str = "train") -> None:
    """Look for an optional library without importing it, which may take seconds.

    Args:
        library: Its name.
        needed_by: What needs it: the first words of the message.
        extra: The extra of this package that has it.

    Raises:
        MissingLibraryError: It is not there.
    """
    if library in sys.modules and sys.modules[library] is not None:
        return
    if library in sys.modules or find_spec(library) is None:
        raise MissingLibraryError(
            f"{needed_by} needs {library}, which is not installed. Run `pip install "
            f"'logitstore[{extra}]'`."
        )


def in_a_line(error: BaseException) -> str:
    """Quote a library's error as part of a message: its class and its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return f"{type(error).__name__}: {first.rstrip('.')}" if first else type(error).__name__
