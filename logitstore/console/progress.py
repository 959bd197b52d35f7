"""Show progress: a bar in a terminal, a plain line every 30 s in a log file.

Only the first process of a launcher shows any.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm.auto import tqdm

from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import find_ranks

_LINE_EVERY_S = 30.0


class Shows(Protocol):
    """Is told what is done: a `Progress`, or what hands it on to one in another process."""

    log: JsonLog

    def update(self, done: int, *, tokens: int = 0, stored_bytes: int = 0, **facts: str) -> None:
        """Add what is done since the last call."""


class Progress:
    """Counts towards a total on stderr; see `progress`.

    Args:
        total: Units when all is done.
        title: What is being done, in a word.
        unit: Name of the unit.
        log: Gets a `progress` event with every plain line.
    """

    def __init__(self, total: int, title: str, unit: str, log: JsonLog | None = None) -> None:
        self._total, self._title, self._unit, self._done = total, title, unit, 0
        self._began = self._last_line = time.monotonic()
        self._tokens = self._stored_bytes = 0
        self.log = log or JsonLog()
        self._is_shown = find_ranks().is_first
        is_bar = self._is_shown and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = (
            tqdm(total=total, desc=title, unit=unit, unit_scale=True) if is_bar else None
        )

    def update(self, done: int, *, tokens: int = 0, stored_bytes: int = 0, **facts: str) -> None:
        """Add what is done since the last call; `facts` are shown beside it."""
        self._done += done
        self._tokens += tokens
        self._stored_bytes += stored_bytes
        shown = self._rates() | facts
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done)
        if time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.log.write("progress", **self.numbers(), **facts)
            if self._is_shown and self._bar is None:
                self._print_line(shown)

    def reach(self, done: int) -> None:
        """Say how much is done in all; less than was said before changes nothing."""
        if done > self._done:
            self.update(done - self._done)

    def numbers(self) -> dict[str, Any]:
        """Return how far it is, at which speed, and the time left, as JSON."""
        elapsed = time.monotonic() - self._began
        numbers: dict[str, Any] = {
            "done": self._done,
            "total": self._total,
            "unit": self._unit,
            "elapsed_s": round(elapsed, 3),
            "left_s": round(elapsed * (self._total - self._done) / max(self._done, 1), 3),
        }
        if self._tokens:
            numbers["tokens"] = self._tokens
            numbers["tokens_per_s"] = round(self._tokens / max(elapsed, 1e-9), 1)
        if self._stored_bytes:
            numbers["stored_bytes"] = self._stored_bytes
        return numbers

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()

    def _rates(self) -> dict[str, str]:
        rates = {}
        if self._tokens:
            elapsed = max(time.monotonic() - self._began, 1e-9)
            rates["tokens/s"] = f"{self._tokens / elapsed:,.0f}"
        if self._stored_bytes:
            rates["stored"] = byte_count(self._stored_bytes)
        return rates

    def _print_line(self, facts: dict[str, str]) -> None:
        left_s = self.numbers()["left_s"]
        done = f"{self._done:,} of {self._total:,} {self._unit}"
        parts = [f"{done} ({self._done / max(self._total, 1):.0%})", f"{duration(left_s)} to go"]
        parts += [f"{name} {value}" for name, value in facts.items()]
        print(f"{self._title}: {', '.join(parts)}", file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, title: str, unit: str, log: JsonLog | None = None) -> Iterator[Progress]:
    """Show progress while the block runs; the arguments are those of `Progress`."""
    shown = Progress(total, title, unit, log)
    try:
        yield shown
    finally:
        shown.close()


def duration(seconds: float) -> str:
    """Write a duration: `45 s`, `3 min 20 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def byte_count(count: float) -> str:
    """Write a size: `812 B`, `1.5 kB`, `12.4 MB`, `3.1 GB`; decimal, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
