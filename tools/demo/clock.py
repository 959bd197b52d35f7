"""Say before each phase of the demo how long all that is left will take."""

import sys
import time
from collections.abc import Mapping

from logitstore.console.progress import duration

#: A phase that took less of its guess than this had been done before the demo was interrupted.
_REALLY_RUN = 0.1


class Clock:
    """Scales the guesses of how long phases take by how long those so far took here.

    Args:
        guesses_s: Seconds of each phase, in their order.
    """

    def __init__(self, guesses_s: Mapping[str, float]) -> None:
        self._guesses_s = dict(guesses_s)
        self._phase: str | None = None
        self._began = 0.0
        self._taken_s: dict[str, float] = {}

    def begin(self, phase: str) -> None:
        """Print that a phase begins, and the time to go."""
        self._end()
        self._phase, self._began = phase, time.monotonic()
        number, count = list(self._guesses_s).index(phase) + 1, len(self._guesses_s)
        left = duration(self.left_s())
        print(f"\n[{number} of {count}] {phase}; {left} to go in all", file=sys.stderr, flush=True)

    def left_s(self) -> float:
        """Return the seconds from the beginning of this phase to the end of the last."""
        left = sum(s for phase, s in self._guesses_s.items() if phase not in self._taken_s)
        run = [
            phase
            for phase, taken in self._taken_s.items()
            if taken >= _REALLY_RUN * self._guesses_s[phase]
        ]
        guessed = sum(self._guesses_s[phase] for phase in run)
        taken = sum(self._taken_s[phase] for phase in run)
        return left * (taken / guessed if guessed else 1)

    def _end(self) -> None:
        if self._phase is not None:
            self._taken_s[self._phase] = time.monotonic() - self._began
