"""Running the public commands as a user would: each in a process of its own."""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """A public command failed; the message says which, and where its words are."""


class Commands:
    """Starts commands, and ends those still running when the demo itself is ended.

    Args:
        cache: Where `datasets` may keep its copies, so that nothing lands in the user's own cache.
    """

    def __init__(self, cache: Path) -> None:
        self._env = os.environ | {
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "1",  # everything asked for is a folder here, and stays one
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",  # the same demo with and without a GPU
        }
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def run(self, arguments: Sequence[str], *, threads: int, log: Path | None = None) -> str:
        """Runs `logitstore …` or `distill …`; returns what it wrote to stdout.

        Args:
            arguments: The command line, as a user types it.
            threads: Cores it may use.
            log: Where stderr goes; None: to ours, progress bars and all.

        Raises:
            CommandError: It ended with another status than 0.
        """
        line = shlex.join(arguments)
        if log is None:
            show(arguments)
        program, *rest = arguments
        with _stderr_of(log) as stderr:
            process = self._start([sys.executable, "-m", program, *rest], threads, stderr)
            try:
                stdout, _ = process.communicate()
            finally:
                self._end(process)
        if process.returncode != 0:
            said = f"; it said:\n{_last_lines(log)}\n({log})" if log else ", for the reason above"
            raise CommandError(f"`{line}` ended with status {process.returncode}{said}")
        return stdout

    def json(self, arguments: Sequence[str], *, threads: int, log: Path | None = None) -> Any:
        """`run` for a command with `--json`: the object it wrote."""
        return json.loads(self.run(arguments, threads=threads, log=log))

    def close(self) -> None:
        """Ends what still runs; starts nothing any more."""
        with self._lock:
            self._is_closed = True
            for process in self._running:
                process.terminate()

    def _start(self, command: list[str], threads: int, stderr: Any) -> "subprocess.Popen[str]":
        with self._lock:
            if self._is_closed:
                raise CommandError("the demo is being ended")
            process = subprocess.Popen(
                command,
                env=self._env | {"OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
            )
            self._running.add(process)
        return process

    def _end(self, process: "subprocess.Popen[str]") -> None:
        with self._lock:
            self._running.discard(process)
        if process.poll() is None:
            process.terminate()
            process.wait()


def show(arguments: Sequence[str]) -> None:
    """Prints a command line as a user would type it."""
    print(f"$ {shlex.join(arguments)}", file=sys.stderr, flush=True)


@contextmanager
def _stderr_of(log: Path | None) -> Iterator[Any]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        yield file


def _last_lines(log: Path, count: int = 8) -> str:
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return "\n".join([line for line in lines if line.strip()][-count:])
