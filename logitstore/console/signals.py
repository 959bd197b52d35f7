"""Handle Ctrl-C and SIGTERM: finish the shard in hand, commit it, and say how to resume.

The first signal is a request: inside `graceful`, work stops at its next good place. A second
signal, or one outside, exits immediately: a store loses nothing by it but the shard in hand.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Says that the user or the scheduler asked to stop.

    Attributes:
        signal_number: Number of the signal.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """Return the exit status that shells expect: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


class Stopper:
    """Receives signals; see `stopper`.

    Attributes:
        asked: Number of the signal that asked to stop; None so far.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._is_graceful = False

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """Only note the first signal inside the block, which looks at `asked` where it can stop."""
        self._is_graceful = True
        try:
            yield
        finally:
            self._is_graceful = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, as the `signal` module calls it."""
        name = signal.Signals(number).name
        if self._is_graceful and self.asked is None:
            self.asked = number
            # Not print: the signal may have come in the middle of one.
            message = f"{name}: stopping after this shard. Repeat it to exit immediately.\n"
            os.write(2, message.encode())
            return
        raise Stopped(number, f"stopped immediately by {name}")


@contextmanager
def stopper() -> Iterator[Stopper]:
    """Handle SIGINT and SIGTERM while inside; in a thread other than the main one, do nothing."""
    made = Stopper()
    if threading.current_thread() is not threading.main_thread():
        yield made
        return
    before = {number: signal.signal(number, made.handle) for number in _SIGNALS}
    try:
        yield made
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
