"""Run a function in a fork of this process, where it may change or end what it likes.

A new interpreter that trains has loaded torch, transformers and Trainer first: ten seconds of a
processor that a fork does not need.
"""

import faulthandler
import importlib
import io
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

#: Seconds that a fork may take.
LIMIT_S = 240


class Fork:
    """A function that runs in a fork of this process.

    Args:
        function: What it returns must be picklable.
        environment: Variables that the fork has besides those of this process.
    """

    def __init__(
        self, function: Callable[[], Any], environment: Mapping[str, str] | None = None
    ) -> None:
        self._readable, writable = os.pipe()
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115  (of a fork that waits for ever)
        self._child = os.fork()
        if self._child == 0:
            try:
                os.close(self._readable)
                faulthandler.dump_traceback_later(LIMIT_S - 5, file=self._stacks)
                os.environ |= environment or {}
                _send(writable, function)
            finally:
                os._exit(0)  # nothing of the test run is to end twice
        os.close(writable)

    def result(self, timeout_s: float = LIMIT_S) -> Any:
        """Wait for what the function returns.

        Raises:
            AssertionError: It raised, ended the process, or took longer; says which.
        """
        data, until = b"", time.monotonic() + timeout_s
        try:
            while select.select([self._readable], [], [], max(until - time.monotonic(), 0))[0]:
                piece = os.read(self._readable, 1 << 16)
                if not piece:
                    break
                data += piece
            else:
                os.kill(self._child, signal.SIGKILL)
        finally:
            os.close(self._readable)
            status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        with self._stacks as stacks:
            stacks.seek(0)
            where = stacks.read().decode(errors="replace")
        assert data, f"the fork ended with status {status}, or after {timeout_s} s: {where}"
        found, raised = pickle.loads(data)
        assert raised is None, raised
        return found


def forked(function: Callable[[], Any], environment: Mapping[str, str] | None = None) -> Any:
    """Run a function in a fork; return what it returns."""
    return Fork(function, environment).result()


def printed_by(tool: str, *flags: str) -> str:
    """Run a module of `tools` in a fork, as `python -m` does; return what it prints."""

    def run() -> str:
        sys.orig_argv = [sys.executable, "-m", tool, *flags]
        sys.argv = [tool, *flags]
        with redirect_stdout(io.StringIO()) as printed:
            importlib.import_module(tool).main()
        return printed.getvalue()

    printed: str = forked(run)
    return printed


def forget_modules(*names: str) -> None:
    """Let the next import of a package load its files anew; for a fork, which ends with that."""
    for module in list(sys.modules):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            del sys.modules[module]


def _send(pipe: int, function: Callable[[], Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in a process of its own
            answer = pickle.dumps((function(), None))
    except BaseException:
        answer = pickle.dumps((None, traceback.format_exc()))
    with os.fdopen(pipe, "wb") as whole:
        whole.write(answer)
