"""Small files from a store that may come from anywhere: bounded before they are parsed.

A store is data from strangers. A JSON text of a few megabytes can ask a parser for a hundred times
its size, a name can be a pipe that never ends, a number can be `NaN`. So: ordinary files only, a
size limit for each, and a count of brackets and quotes (each becomes an object) before parsing.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath

#: `store.json` holds a number a shard; this is room for 900,000 of them.
MAX_SPEC_BYTES = 8 * 1024 * 1024
MAX_SEAL_BYTES = 1024 * 1024
_MAX_BRACKETS = 20_000
_MAX_QUOTES = 50_000
_MAX_DIGITS = 40  # of one number; none of ours has more than 25


def open_file(path: Path) -> BinaryIO:
    """An ordinary file, open for reading; never waits, as opening a pipe would.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is a pipe, a device, a folder or the like.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise ValueError("it is not an ordinary file")
    return os.fdopen(opened, "rb")


def read_file(path: StorePath, limit: int) -> bytes:
    """All bytes of an ordinary file, or of an object.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not an ordinary file, or has more than `limit` bytes.
    """
    if isinstance(path, RemotePath):
        return path.read_limited(limit)
    with open_file(path) as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes, the most it may have")
    return data


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, or would cost far more memory than it has bytes.
    """
    if raw.count(b"[") + raw.count(b"{") > _MAX_BRACKETS or raw.count(b'"') > _MAX_QUOTES:
        raise ValueError("it holds more values than it can need")
    try:
        return json.loads(raw, parse_constant=_no_constant, parse_int=_int, parse_float=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits) if len(digits) <= _MAX_DIGITS else float("inf")
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
