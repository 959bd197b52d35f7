"""Whether another process that writes to the same folder is still at work.

A process says so with a file, `.tmp-…`, that it touches while it works and takes away at its end.
Who reads it decides in this order:

1. *The same machine:* the file names a process. If that is gone the file counts for nothing at
   once: a capture that was killed can go on right away. (Machine means boot, host name and process
   namespace: a number says nothing in another container. Start times tell a process from a later
   one of its number.)
2. *Any other:* the file's age, as the file system counts it: its time against that of a file just
   made beside it. Clocks of hosts differ; this one is the same for all.

All of it is advice. Whatever is concluded wrongly costs work done twice, and nothing else.
"""

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Self

from logitstore.format.canonical_json import parse_json
from logitstore.storage.files import read_file

_MAX_BYTES = 4096
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """Who wrote a file.

    Attributes:
        machine: Tells machines and containers apart.
        host: Its name, for people.
        number: Of the process.
        started: When, in a unit of the machine's own; empty where it does not say.
    """

    machine: str
    host: str
    number: int
    started: str

    @classmethod
    def this(cls) -> Self:
        """The one that runs this."""
        number = os.getpid()
        return cls(_machine(), socket.gethostname(), number, _started(number) or "")

    @property
    def is_alive(self) -> bool | None:
        """Whether it has not ended; None where this machine cannot know."""
        if self.machine != _machine():
            return None
        return _started(self.number) == self.started

    def __str__(self) -> str:
        return f"process {self.number} on {self.host}"


class SignOfLife:
    """A file that says who is at work, made by this process.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self._content = path, content

    @classmethod
    def make(cls, path: Path) -> Self | None:
        """Make the file; None if there is one of this name already.

        Raises:
            OSError: The file system refused.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return None
        # The token tells it from every other: file systems give the same inode out again at once.
        said = vars(Process.this()) | {"token": secrets.token_hex(8)}
        with open(descriptor, "wb") as f:
            f.write(json.dumps(said).encode())
        return cls(path, json.dumps(said).encode())

    def refresh(self) -> None:
        """Still at work. Does not make the file anew: who took it away had a reason."""
        with suppress(OSError):  # a network file system that is away for a moment, too
            os.utime(self.path)

    def end(self) -> None:
        """Done; leaves the file alone if it is another's by now."""
        with suppress(OSError, ValueError):
            if read_file(self.path, _MAX_BYTES) == self._content:
                self.path.unlink()


class Beating:
    """Refreshes a sign of life from a thread of its own, until it ends.

    It says that the process is there, whether it loads a teacher or waits for a batch.
    """

    def __init__(self, sign: SignOfLife, every_s: float) -> None:
        self._sign, self._every_s = sign, every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="sign of life")
        self._thread.start()

    def end(self) -> None:
        """Take the sign away."""
        self._is_over.set()
        self._thread.join()
        self._sign.end()

    def _beat(self) -> None:
        while not self._is_over.wait(self._every_s):
            self._sign.refresh()


@dataclass(frozen=True)
class Seen:
    """Another's sign of life, as it was looked at.

    Attributes:
        path: The file.
        process: Who made it; None if the file does not say (yet).
        age_s: Since it was last touched, on the file system's clock.
        identity: Tells this file, at this touch, from any other.
    """

    path: Path
    process: Process | None
    age_s: float
    identity: tuple[bytes, int]

    def is_dead(self, expires_s: float) -> bool:
        """Whether who made it is gone; where that cannot be known, silent for so long."""
        is_alive = None if self.process is None else self.process.is_alive
        return self.age_s > expires_s if is_alive is None else not is_alive

    def is_stale(self, expires_s: float) -> bool:
        """Whether who made it is gone, or there but silent for so long."""
        return self.is_dead(expires_s) or self.age_s > expires_s

    def remove(self) -> bool:
        """Take a stale one away; False if another did, or it is in use after all."""
        aside = self.path.with_name(f"{self.path.name}-{secrets.token_hex(4)}")
        try:
            self.path.rename(aside)  # one of several who try succeeds
            if _look(aside) != self.identity:  # a fresh one, made since we looked
                with suppress(FileExistsError):
                    os.link(aside, self.path)
                aside.unlink()
                return False
            aside.unlink()
        except (OSError, ValueError):
            return False
        return True


def look_at(path: Path, now_ns: Callable[[], int]) -> Seen | None:
    """A sign of life at a path; None if there is none.

    Args:
        path: The file.
        now_ns: The file system's clock, asked only if needed.
    """
    try:
        raw, touched_ns = identity = _look(path)
    except (OSError, ValueError):
        return None
    age_s = max(now_ns() - touched_ns, 0) / 1e9
    return Seen(path, _process(raw), age_s, identity)


def clock_ns(folder: Path) -> int:
    """What time it is for the file system that a folder is on, in ns.

    Raises:
        OSError: It refused.
    """
    path = folder / f".tmp-clock-{secrets.token_hex(4)}"
    path.touch(exist_ok=False)
    try:
        return path.stat().st_mtime_ns
    finally:
        path.unlink()


def _process(raw: bytes) -> Process | None:
    try:
        said = parse_json(raw)
        found = Process(**{f.name: said[f.name] for f in fields(Process)})
    except (KeyError, TypeError, ValueError):
        return None
    return found if type(found.number) is int else None


def _look(path: Path) -> tuple[bytes, int]:
    """Content and time; opening it makes network file systems ask for both again."""
    return read_file(path, _MAX_BYTES), path.stat().st_mtime_ns


@cache
def _machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append((_PROC / "sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink(_PROC / "self/ns/pid"))
    return " ".join(parts)


def _started(number: int) -> str | None:
    """When a process of this machine started; empty if it does not say; None if there is none."""
    if not _PROC.joinpath("self").exists():
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return None
        except (OSError, OverflowError):
            return ""
        return ""
    try:
        fields = (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # state; starttime, field 22 of proc(5)
