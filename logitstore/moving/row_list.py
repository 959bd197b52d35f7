"""Lists of dataset rows, as `--rows` names them: a file with a row number a line, or a range."""

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from logitstore.console.counts import counted
from logitstore.errors import InputError, StorageError
from logitstore.format.numpy_types import I64
from logitstore.storage import commit
from logitstore.storage.files import open_file
from logitstore.storage.paths import local_path
from logitstore.storage.trial import explain_trial, try_beside

_RANGE = re.compile(r"(\d*):(\d*)")
_MAX_DIGITS = 15
_LOOKED_AT = 1 << 16  # bytes of a file that may be something else
_HOW = "Give a file with one row number a line, or a range such as 0:1000."


class _Rows(Protocol):
    """The part of a store that says which rows there are."""

    @property
    def path(self) -> Any: ...
    @property
    def plan(self) -> Any: ...


def chosen_rows(rows: str, store: _Rows) -> I64:
    """Return the row numbers that `--rows` names, ascending.

    Raises:
        InputError: It names no row, names one twice, or names one that the store does not have.
    """
    named = _read_range(rows, store) if _RANGE.fullmatch(rows) else _read_file(Path(rows))
    if not len(named):
        raise InputError(f"--rows {rows}: names no row of {store.path}. {_HOW}")
    ordered = np.sort(named)
    twice = np.flatnonzero(np.diff(ordered) == 0)
    if len(twice):
        raise InputError(f"--rows {rows}: row {ordered[twice[0]]:,} is there twice. Name it once.")
    if ordered[-1] >= store.plan.rows:
        raise InputError(
            f"--rows {rows}: there is no row {ordered[-1]:,} in {store.path}; it holds 0 to "
            f"{store.plan.rows - 1:,}. Name rows of this store."
        )
    return ordered


def place_for_rows(place: str | PathLike[str], option: str) -> Path:
    """Find the file that a list of rows is to be written to, before the rows are chosen.

    Args:
        place: As it was typed.
        option: What names it, for messages: `--out`.

    Raises:
        InputError: It is in a bucket, in no folder, or a file that is no list of rows.
        StorageError: The file system fails.
    """
    out = local_path(place, "a list of rows", option)
    if out.is_dir() or not out.parent.is_dir():
        fault = "is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise InputError(f"{out}: {fault}. Name a file in a folder that is there with {option}.")
    if out.exists() and not _is_list(out):
        raise InputError(
            f"{out}: this file exists and is no list of rows, so it is kept. Name another with "
            f"{option}."
        )
    try:
        try_beside(out, commits=False)
    except OSError as error:
        raise explain_trial(error, out, option) from error
    return out


def _is_list(path: Path) -> bool:
    """Tell whether a file begins as a list of rows does."""
    try:
        with open_file(path) as file:
            return not file.read(_LOOKED_AT).strip(b"0123456789 \r\n")
    except (OSError, ValueError):  # unreadable, or a pipe or device
        return False


def write_rows(path: str | PathLike[str], rows: Iterable[int]) -> None:
    """Write row numbers to a file that `--rows` reads, whole or not at all.

    Raises:
        StorageError: It cannot be written; what was there is still there.
    """
    text = "".join(f"{row}\n" for row in sorted(rows))
    try:
        commit.write_whole(Path(path), text.encode())
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). Name a file in a folder that "
            "is there, on a disk with room."
        ) from error


def _read_range(rows: str, store: _Rows) -> I64:
    first, stop = rows.split(":")
    held = int(store.plan.rows)
    if stop and int(stop) > held:
        raise InputError(
            f"--rows {rows}: ends at {int(stop):,}, but {store.path} has {counted(held, 'row')}. "
            f"Leave the end out for all that follow: --rows {first}:"
        )
    return np.arange(int(first or 0), int(stop or held), dtype=np.int64)


def _read_file(path: Path) -> I64:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"--rows {path}: neither a file nor a range. {_HOW}") from None
    except OSError as e:
        raise InputError(f"--rows {path}: cannot be read ({e.strerror}). {_HOW}") from e
    except UnicodeDecodeError:
        raise InputError(f"--rows {path}: is not text. {_HOW}") from None
    numbers = [(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    for number, text in numbers:
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
            raise InputError(
                f"--rows {path}: line {number:,} is {text[:40]!r}, expected a row number. {_HOW}"
            )
    return np.array([int(text) for _, text in numbers], np.int64)
