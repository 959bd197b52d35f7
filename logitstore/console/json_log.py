"""Log what a run does as JSON lines, for programs that watch it (`--log-json`)."""

import json
import time
from pathlib import Path
from typing import Any

from logitstore.errors import InputError


class JsonLog:
    """A log of events: each is appended to a file as a line of JSON; without a path, no log."""

    def __init__(self, path: Path | None = None) -> None:
        """Write the first line, `begin`, so that an unwritable file is noticed immediately.

        Raises:
            InputError: The file cannot be written.
        """
        self._path = path
        self._began = time.monotonic()
        self.write("begin")

    def write(self, event: str, **facts: Any) -> None:
        """Append an event with its time, the seconds since `begin`, and its facts.

        Raises:
            InputError: The file cannot be written.
        """
        if self._path is None:
            return
        since_s = round(time.monotonic() - self._began, 3)
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = json.dumps({"event": event, "time": now, "since_s": since_s} | facts)
        try:
            with self._path.open("a") as f:
                f.write(line + "\n")
        except OSError as e:
            raise InputError(
                f"--log-json {self._path}: cannot be written ({e.strerror}). Give a file in a "
                "folder that exists and that you may write to."
            ) from e
