"""Run the demo's commands in this process, one at a time: starting another loads torch again."""

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import distill.cli
import distill.training.run  # here, so that no fork of this process loads them anew
import logitstore.capture.job
import logitstore.cli
from tools.demo.commands import CommandError, Commands

MAINS: dict[str, Callable[[], object]] = {
    "logitstore": logitstore.cli.main,
    "distill": distill.cli.main,
}


class InThisProcess(Commands):
    """Calls the programs' own entry points; nothing of a command line is lost.

    Args:
        cache: As of `Commands`; this process has read its environment already.
        killed: Whether this process kills itself as the first training begins.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, cache: Path, *, killed: bool) -> None:
        super().__init__(cache)
        self._is_killed = killed

    def run(self, arguments: Sequence[str], *, threads: int, log: Path | None = None) -> str:
        """Run a command; return what it wrote to stdout."""
        program, *rest = arguments
        with self._one_at_a_time:
            if rest[0] == "train" and self._is_killed:
                os.kill(os.getpid(), signal.SIGKILL)
            status, printed = _called(program, rest)
        if status != 0:
            raise CommandError(f"{program} {rest} ended with status {status}")
        return printed


def _called(program: str, words: list[str]) -> tuple[int, str]:
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()) as printed,
    ):
        warnings.simplefilter("default")  # as where a user types them
        patch.setattr(sys, "argv", [program, *words])
        try:
            MAINS[program]()
        except SystemExit as ended:
            return int(ended.code or 0), printed.getvalue()
    return 0, printed.getvalue()
