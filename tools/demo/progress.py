"""A bar on a terminal; elsewhere (a log, a pipe) a plain line every 30 seconds."""

import sys
from typing import Any

from tqdm.auto import tqdm

LINE_EVERY_S = 30


class _Lines:
    """Takes what tqdm redraws, and writes each drawing as a line of its own."""

    def write(self, text: str) -> None:
        if drawing := text.strip():
            sys.stderr.write(f"{drawing}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(what: str, *, total: int, unit: str) -> "tqdm[Any]":
    """A bar over `total` steps on stderr; use it as a context manager."""
    # miniters=0: whoever waits for others calls `update(0)`, and the clock goes on.
    if sys.stderr.isatty():
        return tqdm(desc=what, total=total, unit=unit, miniters=0, dynamic_ncols=True)
    return tqdm(
        desc=what,
        total=total,
        unit=unit,
        miniters=0,
        mininterval=LINE_EVERY_S,
        file=_Lines(),
        ascii=True,
        ncols=100,
    )
