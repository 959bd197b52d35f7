"""Progress where people look: a bar in a terminal, a plain line every 30 s in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

_LINE_EVERY_S = 30.0


class Progress:
    """Counts towards a total on stderr; see `progress`."""

    def __init__(self, total: int, what: str, unit: str) -> None:
        self._total, self._what, self._unit, self._done = total, what, unit, 0
        self._began = self._said = time.monotonic()
        is_terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = (
            tqdm(total=total, desc=what, unit=unit, unit_scale=True) if is_terminal else None
        )

    def update(self, done: int, **facts: str) -> None:
        """So much more is done; `facts` are shown beside it."""
        self._done += done
        if self._bar is not None:
            self._bar.set_postfix(facts, refresh=False)
            self._bar.update(done)
        elif time.monotonic() - self._said >= _LINE_EVERY_S:
            self._say(facts)

    def close(self) -> None:
        """Finish the line."""
        if self._bar is not None:
            self._bar.close()

    def _say(self, facts: dict[str, str]) -> None:
        self._said = time.monotonic()
        elapsed = self._said - self._began
        left = elapsed * (self._total - self._done) / max(self._done, 1)
        parts = [f"{self._done:,} of {self._total:,} {self._unit}", f"{left:.0f} s to go"]
        parts += [f"{name} {value}" for name, value in facts.items()]
        print(f"{self._what}: {', '.join(parts)}", file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Progress]:
    """A `Progress` that is closed whatever happens."""
    shown = Progress(total, what, unit)
    try:
        yield shown
    finally:
        shown.close()
