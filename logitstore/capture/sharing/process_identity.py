"""Tell which process wrote a file, and whether that process still runs.

A process number alone says little: another container has the same numbers, and a later process of
the same machine may get one again. So an identity also names the machine (boot, host name and
process namespace) and the time at which the process started.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Self

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessIdentity:
    """Identifies a process among all machines that see the same folder.

    Attributes:
        machine: Differs between machines, boots and containers.
        host: The machine's name, for people.
        number: The process id on that machine.
        started: Its start time in the machine's own unit; empty where the system does not tell.
    """

    machine: str
    host: str
    number: int
    started: str

    @classmethod
    def this(cls) -> Self:
        """Identify the process that calls this."""
        number = os.getpid()
        return cls(_machine(), socket.gethostname(), number, _start_time(number) or "")

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """Read the identity out of a file that another process wrote.

        Raises:
            KeyError, TypeError: The file holds something else.
        """
        identity = cls(**{f.name: written[f.name] for f in fields(cls)})
        if type(identity.number) is not int:
            raise TypeError("a process number is an integer")
        return identity

    @property
    def is_alive(self) -> bool | None:
        """Tell whether it still runs; None for a process of another machine."""
        if self.machine != _machine():
            return None
        return _start_time(self.number) == self.started

    def __str__(self) -> str:
        return f"process {self.number} on {self.host}"


@cache
def _machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append((_PROC / "sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink(_PROC / "self/ns/pid"))
    return " ".join(parts)


def _start_time(number: int) -> str | None:
    """Look up when a process of this machine started.

    Returns:
        None if there is no such process; empty where the system does not tell.
    """
    if not _PROC.joinpath("self").exists():
        try:
            os.kill(number, 0)  # signal 0 only asks whether the process exists
        except ProcessLookupError:
            return None
        except (OSError, OverflowError):
            return ""
        return ""
    try:
        status = (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start_time = status[0], status[19]  # fields 3 and 22 of proc(5)
    return None if state in "ZX" else start_time  # a zombie has ended
