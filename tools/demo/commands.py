"""Run the public commands as a user would, each in its own process."""

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
    """A public command failed; the message names it and the file with its output."""


class Commands:
    """A runner of commands that stops those still running when the demo itself is stopped.

    Args:
        cache: The folder where `datasets` keeps its copies, instead of the user's own cache.
    """

    def __init__(self, cache: Path) -> None:
        self._env = os.environ | {
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "1",  # all models and datasets are local folders
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",  # the same demo with and without a GPU
        }
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def run(self, arguments: Sequence[str], *, threads: int, log: Path | None = None) -> str:
        """Run `logitstore …` or `distill …`; return what it wrote to stdout.

        Args:
            arguments: The command line, as a user types it.
            threads: The number of cores it may use.
            log: The file for its stderr; None: stderr of this process, with progress bars.

        Raises:
            CommandError: Its exit status was not 0.
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
        """Run a command with `--json`; return the object that it wrote."""
        return json.loads(self.run(arguments, threads=threads, log=log))

    def close(self) -> None:
        """Stop the commands that still run, and start no more."""
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
    """Print a command line as a user would type it."""
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
