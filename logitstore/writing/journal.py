"""Log who wrote what of a store, and when: beside the store, never in it.

No program reads the journal; it answers a person who asks which machine wrote a shard.

    my-store.journal.jsonl                            beside a folder: one line an event, appended
    s3://bucket/my-store.journal/<time>-<host>-<process>-<n>.jsonl     beside a store in a bucket

A bucket cannot append, so there each process writes objects of its own, each anew with every line
and complete after a hundred.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from logitstore.storage import commit
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath

_LINES_AN_OBJECT = 100


class Journal:
    """Writes the events of a store beside it.

    Attributes:
        listeners: Called with every event after it is written, as `listener(event, **facts)`:
            `--log-json` is one, so what happens to a store is told once and read in both places.
    """

    def __init__(self, store: StorePath) -> None:
        self.listeners: list[Callable[..., None]] = []
        self._store, self._lines = store, list[str]()
        began = time.strftime("%Y%m%dT%H%M%S")
        self._own = f"{began}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
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
            if isinstance(self._store, RemotePath):
                self._put(self._store, json.dumps(line))
            else:
                self._append(json.dumps(line))
            for listener in self.listeners:
                listener(event, **facts)

    def _append(self, line: str) -> None:
        path = self._store.with_name(f"{self._store.name}.journal.jsonl")
        assert not isinstance(path, RemotePath)
        try:
            with path.open("a") as f:
                f.write(line + "\n")
        except OSError as e:
            raise commit.explain(e, path) from e

    def _put(self, store: RemotePath, line: str) -> None:
        self._lines.append(line)
        number = (len(self._lines) - 1) // _LINES_AN_OBJECT
        lines = self._lines[number * _LINES_AN_OBJECT :]
        folder = store.with_name(f"{store.name}.journal")
        name = f"{self._own}-{number:04d}.jsonl"
        (folder / name).overwrite("".join(f"{one}\n" for one in lines).encode())
