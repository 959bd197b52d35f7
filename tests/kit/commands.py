"""Run a command of either program in this process: starting another costs the import of torch."""

import sys
from collections.abc import Callable

import pytest

#: Runs a command with these arguments; returns exit status, stdout and stderr.
Run = Callable[..., tuple[int, str, str]]


def runner(
    program: str,
    main: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Make the `run` of a program for a test."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run
