"""`kill -9` at random moments of a real capture; the tool that does it 200 times does six here."""

import importlib
import io
import os
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from tests.kit.forks import forked
from tests.kit.paths import ROOT

TOOL = ROOT / "tools" / "kill_capture.py"


def kill(times: int, *more: str) -> str:
    command = [sys.executable, str(TOOL), "--kills", str(times), "--seed", str(times), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_kills_lose_nothing_that_was_committed_here_or_at_a_students_boundaries() -> None:
    """With a store inside the store, both of which every kill may hit."""

    def run() -> str:
        sys.argv = [str(TOOL), "--kills", "6", "--seed", "6", "--boundaries"]
        with redirect_stdout(io.StringIO()) as printed:
            importlib.import_module("tools.kill_capture").main()
        return printed.getvalue()

    said: str = forked(run)
    assert said.startswith("6 kills survived")
    assert "byte-identical" in said


@pytest.mark.slow
def test_three_workers_that_are_killed_and_replaced_write_the_store_of_one_process() -> None:
    for more in ((), ("--boundaries",)):
        said = kill(3, "--workers", "3", *more)
        assert said.startswith("3 kills survived")
        assert "byte-identical" in said


@pytest.mark.slow
def test_a_hundred_killed_workers_cost_nothing_but_time() -> None:
    said = kill(100, "--workers", "3")
    assert said.startswith("100 kills survived")
    assert "byte-identical" in said


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing_that_was_committed() -> None:
    assert kill(200).startswith("200 kills survived")
