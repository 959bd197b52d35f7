"""Ctrl-C and SIGTERM as a request: end at the shard, commit what is in flight, say how to resume.

The first signal asks; work that is `unhurried` ends at its next good place. A second signal, or one
outside such work, ends at once: a store loses nothing by it but the shard that was in hand.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The user or the scheduler asked to stop.

    Attributes:
        signal_number: Which signal.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """As shells count it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


class Stopper:
    """Listens for signals; see `stopper`."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._is_unhurried = False

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """Inside, the first signal is only noted: look at `asked` at every good place to end."""
        self._is_unhurried = True
        try:
            yield
        finally:
            self._is_unhurried = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        name = signal.Signals(number).name
        if self._is_unhurried and self.asked is None:
            self.asked = number
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"{name}: ending after this shard. Once more to end at once.\n".encode())
            return
        raise Stopped(number, f"stopped at once by {name}")


@contextmanager
def stopper() -> Iterator[Stopper]:
    """Handle SIGINT and SIGTERM while inside. Elsewhere than in the main thread: not at all."""
    made = Stopper()
    if threading.current_thread() is not threading.main_thread():
        yield made
        return
    before = {number: signal.signal(number, made.hear) for number in _SIGNALS}
    try:
        yield made
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
