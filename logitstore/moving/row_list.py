"""Lists of dataset rows, as `--rows` names them: a file with a row number a line, or a range."""

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np

from logitstore.errors import InputError, StorageError
from logitstore.format.numpy_types import I64
from logitstore.storage import commit
from logitstore.store import LogitStore

_RANGE = re.compile(r"(\d*):(\d*)")
_MAX_DIGITS = 15
_HOW = "Give a file with one row number a line, or a range such as 0:1000."


def chosen_rows(rows: str, store: LogitStore) -> I64:
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


def _read_range(rows: str, store: LogitStore) -> I64:
    first, stop = rows.split(":")
    held = store.plan.rows
    if stop and int(stop) > held:
        raise InputError(
            f"--rows {rows}: ends at {int(stop):,}, but {store.path} has {held:,} rows. Leave the "
            f"end out for all that follow: --rows {first}:"
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
