"""Refuse what the page does not describe, and read files only as far as they may reach."""

import os
import stat


class RefusedError(Exception):
    """The store is not what the page describes."""


def must(holds, what):
    if not holds:
        raise RefusedError(what)


def ordinary(path, most=1 << 32):
    """The bytes of an ordinary file (section 1), of which there are at most so many."""
    try:
        about = os.stat(path)
    except OSError:
        raise RefusedError(f"{path.name} is there") from None
    must(stat.S_ISREG(about.st_mode), f"{path.name} is an ordinary file")
    must(about.st_size <= most, f"{path.name} is not too large")
    return path.read_bytes()
