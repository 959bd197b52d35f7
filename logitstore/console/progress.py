"""Show progress: a bar in a terminal, a plain line every 30 s in a log file.

Only the first process of a launcher shows any.
"""

import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import find_ranks

_LINE_EVERY_S = 30.0
#: What a bar looks like: all but the bar itself is written here.
_BAR = "{desc} {percentage:3.0f}% {bar}"
#: The columns of a bar beside its title and its words: the percentage, and six of the bar itself.
_BAR_COLUMNS = len("  100%  ") + 6


class Shows(Protocol):
    """Is told what is done: a `Progress`, or what hands it on to one in another process."""

    log: JsonLog

    def update(
        self, done: int, *, rows: int = 0, tokens: int = 0, stored_bytes: int = 0, **facts: str
    ) -> None:
        """Add what is done since the last call."""


class Progress:
    """Counts towards a total on stderr; see `progress`.

    Args:
        total: Units when all is done.
        title: What is being done, in a word.
        unit: Name of the unit.
        log: Gets a `progress` event with every plain line.
        rows: Of the total, where its units are too fine for people: rows are shown then, and the
            time to go still follows the units.
    """

    def __init__(
        self, total: int, title: str, unit: str, log: JsonLog | None = None, rows: int | None = None
    ) -> None:
        self._total, self._title, self._unit, self._rows_total = total, title, unit, rows
        self._began = self._last_line = time.monotonic()
        self._done = self._rows = self._tokens = self._stored_bytes = 0
        self.log = log or JsonLog()
        self._is_shown = find_ranks().is_first
        is_bar = self._is_shown and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = (
            tqdm(total=total, desc=title, bar_format=_BAR, dynamic_ncols=True) if is_bar else None
        )

    def update(
        self, done: int, *, rows: int = 0, tokens: int = 0, stored_bytes: int = 0, **facts: str
    ) -> None:
        """Add what is done since the last call; `facts` are shown beside it."""
        self._done += done
        self._rows += rows
        self._tokens += tokens
        self._stored_bytes += stored_bytes
        if self._bar is not None:
            said = self._that_fit(facts).replace("{", "{{").replace("}", "}}")
            self._bar.bar_format = f"{_BAR} {said}"
            self._bar.update(done)
        if time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.log.write("progress", **self.numbers(), **facts)
            if self._is_shown and self._bar is None:
                print(self._line(facts), file=sys.stderr, flush=True)

    def reach(self, done: int, **facts: Any) -> None:
        """Say how much is done in all; less than was said before counts nothing."""
        self.update(max(0, done - self._done), **facts)

    def numbers(self) -> dict[str, Any]:
        """Return how far it is, at which speed, and the time left, as JSON.

        The time left is None until something is done.
        """
        elapsed = time.monotonic() - self._began
        left_s = elapsed * (self._total - self._done) / self._done if self._done else None
        numbers: dict[str, Any] = {
            "done": self._done,
            "total": self._total,
            "unit": self._unit,
            "elapsed_s": round(elapsed, 3),
            "left_s": None if left_s is None else round(left_s, 3),
        }
        if self._rows_total is not None:
            numbers |= {"rows": self._rows, "rows_total": self._rows_total}
        if self._tokens:
            numbers["tokens"] = self._tokens
            numbers["tokens_per_s"] = round(self._tokens / max(elapsed, 1e-9), 1)
        if self._stored_bytes:
            numbers["stored_bytes"] = self._stored_bytes
        return numbers

    @property
    def is_bar(self) -> bool:
        """Whether there is a bar, which what is printed meanwhile would cut through."""
        return self._bar is not None

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, facts: Mapping[str, str]) -> str:
        done, total, unit = self._counted()
        share = self._done / max(self._total, 1)
        parts = [f"{done:,} of {total:,} {unit} ({share:.0%})", *self._more("tokens", facts)]
        return f"{self._title}: {', '.join(parts)}"

    def _that_fit(self, facts: Mapping[str, str]) -> str:
        """Join what fits beside a bar that can still be seen, the most wanted first."""
        done, total, unit = self._counted()
        room = _columns() - len(self._title) - _BAR_COLUMNS
        said = f"{done:,}/{total:,} {unit}"
        for part in self._more("tok", facts):
            if len(said) + len(f", {part}") > room:
                break
            said += f", {part}"
        return said

    def _counted(self) -> tuple[int, int, str]:
        if self._rows_total is None:
            return self._done, self._total, self._unit
        return self._rows, self._rows_total, "rows"

    def _more(self, tokens: str, facts: Mapping[str, str]) -> Iterator[str]:
        numbers = self.numbers()
        left_s = numbers["left_s"]
        yield "beginning" if left_s is None else f"{duration(left_s)} to go"
        if self._tokens:
            yield f"{numbers['tokens_per_s']:,.0f} {tokens}/s"
        yield from (f"{name} {value}" for name, value in facts.items())
        if self._stored_bytes:
            yield f"{byte_count(self._stored_bytes)} stored"


@contextmanager
def progress(
    total: int, title: str, unit: str, log: JsonLog | None = None, rows: int | None = None
) -> Iterator[Progress]:
    """Show progress while the block runs; the arguments are those of `Progress`.

    What is logged meanwhile stands above the bar, not in it.
    """
    shown = Progress(total, title, unit, log, rows)
    try:
        with _above_the_bar() if shown.is_bar else nullcontext():
            yield shown
    finally:
        shown.close()


@contextmanager
def _above_the_bar() -> Iterator[None]:
    """Have warnings and what is logged printed above the bar."""

    def shown(*of: Any, **more: Any) -> None:
        message, category, filename, lineno, *_ = of
        tqdm.write(warnings.formatwarning(message, category, filename, lineno), sys.stderr, end="")

    before, warnings.showwarning = warnings.showwarning, shown
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        warnings.showwarning = before


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.__stderr__.fileno()).columns  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):  # none, closed, or no terminal
        return 80


def duration(seconds: float) -> str:
    """Write a duration: `45 s`, `3 min 20 s`, `35 min`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def byte_count(count: float) -> str:
    """Write a size: `812 B`, `1.5 kB`, `12.4 MB`, `3.1 GB`; decimal, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
