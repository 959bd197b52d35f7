"""Progress where people look: a bar in a terminal, a plain line every 30 s in a log file.

Only the first process of a launcher shows any.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import find_ranks

_LINE_EVERY_S = 30.0


class Progress:
    """Counts towards a total on stderr; see `progress`."""

    def __init__(self, total: int, what: str, unit: str, log: JsonLog | None = None) -> None:
        self._total, self._what, self._unit, self._done = total, what, unit, 0
        self._began = self._said = time.monotonic()
        self._tokens = self._stored_bytes = 0
        self.log = log or JsonLog()
        self._is_shown = find_ranks().is_first
        is_bar = self._is_shown and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = (
            tqdm(total=total, desc=what, unit=unit, unit_scale=True) if is_bar else None
        )

    def update(self, done: int, *, tokens: int = 0, stored_bytes: int = 0, **facts: str) -> None:
        """So much more is done; `facts` are shown beside it."""
        self._done += done
        self._tokens += tokens
        self._stored_bytes += stored_bytes
        shown = self._rates() | facts
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done)
        if time.monotonic() - self._said >= _LINE_EVERY_S:
            self._said = time.monotonic()
            self.log.write("progress", **self.numbers(), **facts)
            if self._is_shown and self._bar is None:
                self._say(shown)

    def numbers(self) -> dict[str, Any]:
        """Where it stands."""
        elapsed = time.monotonic() - self._began
        found: dict[str, Any] = {
            "done": self._done,
            "total": self._total,
            "unit": self._unit,
            "elapsed_s": round(elapsed, 3),
            "left_s": round(elapsed * (self._total - self._done) / max(self._done, 1), 3),
        }
        if self._tokens:
            found["tokens"] = self._tokens
            found["tokens_per_s"] = round(self._tokens / max(elapsed, 1e-9), 1)
        if self._stored_bytes:
            found["stored_bytes"] = self._stored_bytes
        return found

    def close(self) -> None:
        """Finish the line."""
        if self._bar is not None:
            self._bar.close()

    def _rates(self) -> dict[str, str]:
        found = {}
        if self._tokens:
            elapsed = max(time.monotonic() - self._began, 1e-9)
            found["tokens/s"] = f"{self._tokens / elapsed:,.0f}"
        if self._stored_bytes:
            found["stored"] = byte_count(self._stored_bytes)
        return found

    def _say(self, facts: dict[str, str]) -> None:
        left_s = self.numbers()["left_s"]
        done = f"{self._done:,} of {self._total:,} {self._unit}"
        parts = [f"{done} ({self._done / max(self._total, 1):.0%})", f"{duration(left_s)} to go"]
        parts += [f"{name} {value}" for name, value in facts.items()]
        print(f"{self._what}: {', '.join(parts)}", file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, what: str, unit: str, log: JsonLog | None = None) -> Iterator[Progress]:
    """A `Progress` that is closed whatever happens."""
    shown = Progress(total, what, unit, log)
    try:
        yield shown
    finally:
        shown.close()


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def byte_count(count: float) -> str:
    """`812 B`, `1.5 kB`, `12.4 MB`, `3.1 GB`: decimal, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
