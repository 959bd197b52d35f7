"""Heartbeats: how processes that share a folder or a bucket know of each other's work.

A process at work on something has a file `.tmp-…` for it, touches the file while the work goes on,
and removes it afterwards. Another process that reads the file decides in this order:

1. *The same machine:* the file names its process. If that has ended, the heartbeat is dead, however
   fresh: a capture that was killed can be resumed right away.
2. *Any other machine:* the age of the last beat counts, by the clock of the file system, that is,
   against the time of a file just made beside it. The clocks of hosts differ; this one is the same
   for all.

Ranks of a launcher do not judge each other's heartbeats. They only watch that something in the
shards' folder moves (`wait_until`), which works in a bucket too.

All of it is advice. A wrong conclusion costs work done twice, and nothing else.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from logitstore.capture.sharing.process_identity import ProcessIdentity
from logitstore.format.canonical_json import parse_json
from logitstore.storage import commit
from logitstore.storage.files import read_file
from logitstore.storage.paths import StorePath, store_path

#: A wait ends when nothing has moved for this long. Loading a large teacher takes minutes.
PATIENCE_S = 1800.0
BEAT_EVERY_S = 10.0
#: Looks for a sign of life in the time of patience: each may list a folder of a million names.
_LOOKS = 100
RANK_PREFIX = ".tmp-alive-"
_MAX_BYTES = 4096


class Heartbeat:
    """Keeps a file that this process touches while it works.

    Attributes:
        path: The file; its name says what is being worked on.
    """

    def __init__(self, path: Path | StorePath) -> None:
        # The token tells two heartbeats of one process apart; an inode would not, for file systems
        # give the same one out again right away.
        written = vars(ProcessIdentity.this()) | {"token": secrets.token_hex(8)}
        self.path, self._content = store_path(path), json.dumps(written).encode()
        self._next_beat_s = 0.0

    @classmethod
    def create(cls, path: Path) -> Self | None:
        """Create the file of a heartbeat that processes compete for.

        Returns:
            None if there is a file of this name already.

        Raises:
            OSError: The file system rejected it.
        """
        heartbeat = cls(path)
        try:
            file = path.open("xb")
        except FileExistsError:
            return None
        try:
            with file:
                file.write(heartbeat._content)
        except OSError:  # the disk is full: nobody may take the empty file for a process at work
            path.unlink(missing_ok=True)
            raise
        return heartbeat

    @classmethod
    def start(cls, path: Path | StorePath) -> Self:
        """Write the file of a heartbeat whose name belongs to this process alone.

        Raises:
            StorageError: The file system or the object store rejected it.
        """
        heartbeat = cls(path)
        try:
            path.write_bytes(heartbeat._content)
        except OSError as e:
            with suppress(OSError):
                heartbeat.path.delete()
            raise commit.explain(e, path) from e
        return heartbeat

    def beat(self) -> None:
        """Touch the file; cheap, since nothing happens within 10 s of the last beat."""
        if time.monotonic() >= self._next_beat_s:
            self._next_beat_s = time.monotonic() + BEAT_EVERY_S
            self._touch()

    def stop(self) -> None:
        """Remove the file, unless another process has taken its name over."""
        with suppress(OSError, ValueError):
            if self.path.read_limited(_MAX_BYTES).startswith(self._content):
                self.path.delete()

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Beat from a thread of its own, then stop.

        For a whole process, which may be loading a teacher or waiting for a batch.
        """
        is_over = threading.Event()

        def run() -> None:
            while not is_over.wait(BEAT_EVERY_S):
                self._touch()

        thread = threading.Thread(target=run, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            self.stop()

    def _touch(self) -> None:
        # Never makes the file anew: whoever removed it (a seal, a process that took this one for
        # dead) had a reason. And what is reached by a network may be away for a moment.
        with suppress(OSError):
            self.path.refresh(self._content)


@dataclass(frozen=True)
class SeenHeartbeat:
    """Describes the heartbeat of another process at the moment it was read.

    Attributes:
        path: The file.
        process: Who made it; None if the file does not say (yet).
        age_s: Time since the last beat, on the file system's clock.
        identity: Content and time in ns, which tell this beat of this file from any other.
    """

    path: Path
    process: ProcessIdentity | None
    age_s: float
    identity: tuple[bytes, int]

    def is_dead(self, expires_s: float) -> bool:
        """Tell whether its process has ended; where that cannot be known, by age."""
        is_alive = None if self.process is None else self.process.is_alive
        return self.age_s > expires_s if is_alive is None else not is_alive

    def is_stale(self, expires_s: float) -> bool:
        """Tell whether its process has ended, or runs but has not beaten for `expires_s`."""
        return self.is_dead(expires_s) or self.age_s > expires_s

    def remove(self) -> bool:
        """Remove a stale file.

        Returns:
            False if another process removed it first, or it has beaten since it was read.
        """
        aside = self.path.with_name(f"{self.path.name}-{secrets.token_hex(4)}")
        try:
            self.path.rename(aside)  # of several who try, one succeeds
            if _content_and_time(aside) != self.identity:  # a fresh one, made since we looked
                with suppress(FileExistsError):
                    os.link(aside, self.path)
                aside.unlink()
                return False
            aside.unlink()
        except (OSError, ValueError):
            return False
        return True


def read_heartbeat(path: Path, now_ns: Callable[[], int]) -> SeenHeartbeat | None:
    """Read another process's heartbeat; None if there is none.

    Args:
        path: The file.
        now_ns: Asks the file system's clock; called only if there is a file.
    """
    try:
        content, beaten_ns = _content_and_time(path)
    except (OSError, ValueError):
        return None
    try:
        process = ProcessIdentity.from_json(parse_json(content))
    except (KeyError, TypeError, ValueError):
        process = None
    age_s = max(now_ns() - beaten_ns, 0) / 1e9
    return SeenHeartbeat(path, process, age_s, (content, beaten_ns))


def file_system_time_ns(folder: Path) -> int:
    """Ask the file system that holds a folder what time it is, in ns.

    Raises:
        OSError: It rejected the file that is made to ask it.
    """
    path = folder / f".tmp-clock-{secrets.token_hex(4)}"
    path.touch(exist_ok=False)
    try:
        return path.stat().st_mtime_ns
    finally:
        path.unlink()


def activity(folder: StorePath) -> dict[str, str | None]:
    """List what changes in a folder while ranks work: its names, and the signs of heartbeats."""
    # Of ranks alone: a rank that waits keeps a file of its own fresh that says it is at work.
    return {
        name: sign if name.startswith(RANK_PREFIX) else None
        for name, sign in folder.signs().items()
    }


def wait_until(
    is_done: Callable[[], bool],
    observe: Callable[[], object],
    *,
    patience_s: float = PATIENCE_S,
    poll_s: float = 0.2,
) -> bool:
    """Wait for other processes while something still moves.

    Args:
        is_done: Whether what is waited for has happened.
        observe: Returns a value that differs from one look to the next while others work. It may be
            dear, so it is asked a hundred times in `patience_s`.
        patience_s: How long the observed value may stay the same.
        poll_s: Seconds between two looks.

    Returns:
        Whether it is done; False when nothing moved for `patience_s`.
    """
    last, since_s = observe(), time.monotonic()
    next_s = since_s
    while not is_done():
        if time.monotonic() - since_s >= patience_s:
            return False
        time.sleep(poll_s)
        if time.monotonic() < next_s:
            continue
        if (now := observe()) != last:
            last, since_s = now, time.monotonic()
        next_s = time.monotonic() + patience_s / _LOOKS
    return True


def _content_and_time(path: Path) -> tuple[bytes, int]:
    """Read a file and its time; opening it makes network file systems ask the server for both."""
    return read_file(path, _MAX_BYTES), path.stat().st_mtime_ns
