"""Log who wrote what of a store, and when: beside the store, never in it.

No program reads the journal; it answers a person who asks which machine wrote a shard.

    my-store.journal.jsonl                            beside a folder: one line an event, appended
    s3://bucket/my-store.journal/<time>-<host>-<process>-<n>.jsonl     beside a store in a bucket

A bucket cannot append, so there each process writes objects of its own, each anew with every line
and complete after a hundred.
"""

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from logitstore.storage import commit
from logitstore.storage.paths import StorePath
from logitstore.storage.trial import explain_trial

_LINES_AN_OBJECT = 100


class Notes(Protocol):
    """Writes events: a `Journal`, or the part of one that belongs to a store inside a store."""

    listeners: list[Callable[..., None]]

    def note(self, event: str, **facts: Any) -> None:
        """Write an event, and hand it to the listeners."""

    def within(self, folder: str) -> "Notes":
        """Make the notes of a store inside this one, with its folder in each."""


class Journal:
    """Writes the events of a store beside it.

    Attributes:
        listeners: Called with every event after it is written, as `listener(event, **facts)`:
            `--log-json` is one, so what happens to a store is told once and read in both places.
    """

    def __init__(self, store: StorePath) -> None:
        self.listeners: list[Callable[..., None]] = []
        # The one difference: a file can be appended to, an object can only be replaced.
        self._add = _append_to(store) if isinstance(store, Path) else _Objects(store).add
        self._lock = threading.Lock()  # shards are committed on a thread of their own

    def note(self, event: str, **facts: Any) -> None:
        """Write an event with its time, host and process, and hand it to the listeners.

        Raises:
            StorageError: The file system or the object store rejected it.
        """
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "event": event,
        } | facts
        with self._lock:
            self._add(json.dumps(line))
            for listener in self.listeners:
                listener(event, **facts)

    def within(self, folder: str) -> Notes:
        """Make a journal of a store inside this one: the same lines, with its folder in each."""
        return _Within(self, folder)


class _Within:
    """Writes the events of a store inside another into that one's journal."""

    def __init__(self, journal: Journal, folder: str) -> None:
        self._journal, self._folder = journal, folder
        self.listeners = journal.listeners

    def note(self, event: str, **facts: Any) -> None:
        """Write an event, as `Journal.note` does."""
        self._journal.note(event, within=self._folder, **facts)

    def within(self, folder: str) -> Notes:
        """Make the notes of a store inside this one."""
        return _Within(self._journal, f"{self._folder}/{folder}")


def try_journal(store: StorePath) -> None:
    """Reject a folder of a store, one that is there, if its journal could not be written.

    Raises:
        StorageError: The folder around it, or an older journal, cannot be written to.
    """
    if store.is_remote or not store.exists():
        return
    journal = store.with_name(f"{store.name}.journal.jsonl")
    if not journal.exists():
        journal.parent.try_writing(commits=False)
    elif not os.access(str(journal), os.W_OK):
        raise explain_trial(OSError(errno.EACCES, os.strerror(errno.EACCES)), journal, "--out")


def _append_to(store: Path) -> Callable[[str], None]:
    path = store.with_name(f"{store.name}.journal.jsonl")

    def add(line: str) -> None:
        try:
            with path.open("a") as f:
                f.write(line + "\n")
        except OSError as e:
            raise commit.explain(e, path) from e

    return add


class _Objects:
    """The lines of this process, in objects of its own."""

    def __init__(self, store: StorePath) -> None:
        self._folder, self._lines = store.with_name(f"{store.name}.journal"), list[str]()
        began = time.strftime("%Y%m%dT%H%M%S")
        self._own = f"{began}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"

    def add(self, line: str) -> None:
        self._lines.append(line)
        number = (len(self._lines) - 1) // _LINES_AN_OBJECT
        lines = self._lines[number * _LINES_AN_OBJECT :]
        name = f"{self._own}-{number:04d}.jsonl"
        (self._folder / name).overwrite("".join(f"{one}\n" for one in lines).encode())
