"""Progress is a bar of one line in a terminal, and a plain line now and then in a log."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from logitstore.console.json_log import JsonLog
from logitstore.console.progress import Progress, byte_count, duration, progress


def test_without_a_terminal_there_is_a_line_every_30_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    monkeypatch.setattr("logitstore.console.progress.time.monotonic", lambda: now[0])
    with progress(1000, "capture", "B", JsonLog(tmp_path / "log"), rows=20) as shown:
        for _ in range(7):
            now[0] += 10
            shown.update(100, rows=2, tokens=50, stored_bytes=2_000_000, shard="1/4")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "capture: 6 of 20 rows (30%), 1 min 10 s to go, 5 tokens/s, shard 1/4, 6.0 MB stored",
        "capture: 12 of 20 rows (60%), 40 s to go, 5 tokens/s, shard 1/4, 12.0 MB stored",
    ]
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [e["event"] for e in events] == ["begin", "progress", "progress"]
    assert (events[2]["tokens_per_s"], events[2]["left_s"], events[2]["shard"]) == (5, 40, "1/4")
    assert (events[2]["rows"], events[2]["rows_total"]) == (12, 20)


def test_a_bar_is_only_for_terminals_and_only_on_rank_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for rank, is_shown in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        shown = Progress(10, "capture", "B")
        shown.update(5, tokens=3)
        shown.close()
        err = capsys.readouterr().err
        assert ("capture" in err and "tok/s" in err) == is_shown, err


def test_no_time_to_go_is_guessed_from_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("logitstore.console.progress.time.monotonic", lambda: now[0])
    with progress(8, "students", "students") as shown:
        for done in (0, 0, 1):
            now[0] += 30
            shown.reach(done, latest="a{b}")
    assert capsys.readouterr().err.splitlines() == [
        "students: 0 of 8 students (0%), beginning, latest a{b}",
        "students: 0 of 8 students (0%), beginning, latest a{b}",
        "students: 1 of 8 students (12%), 10 min to go, latest a{b}",
    ]


def in_a_terminal(code: str, columns: int) -> str:
    """What a program writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # Linux' end of a terminal that nobody has open any more
        while piece := os.read(ours, 4096):
            said += piece
    os.close(ours)
    assert child.wait() == 0, said
    return said.decode()


IN_A_BAR = """
import logging, sys, warnings
from logitstore.console.escaped import escaped_output
from logitstore.console.progress import progress
with escaped_output():
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with progress(790_000, "capture", "B", rows=7_900) as shown:
        facts = {"GPU": "5.1 GB", "shard": "3/9 {}"}
        shown.update(301_200, rows=3_012, tokens=20_000, stored_bytes=10**9, **facts)
        logging.info("to come: about 12 tokens")
        warnings.warn("a warning")
        shown.update(0, **facts)
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_a_bar_says_all_in_a_line_and_nothing_is_printed_into_it(columns: int) -> None:
    said = in_a_terminal(IN_A_BAR, columns)
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip()]
    assert "to come: about 12 tokens" in lines
    assert any(line.endswith("UserWarning: a warning") for line in lines)
    *_, last = lines
    assert last.startswith("capture  38% ")
    assert re.search(r" 3,012/7,900 rows, \d+ s to go, [\d,]+ tok/s, GPU 5.1 GB", last)
    assert ("shard 3/9 {}, 1.0 GB stored" in last) == (columns == 120)
    assert max(map(len, lines)) <= columns
    assert last.count("█") >= 2


def test_amounts_are_said_in_units_people_use() -> None:
    said = ["3 s", "1 min 15 s", "35 min", "2 h 5 min"]
    assert [duration(s) for s in (3.4, 75, 2110, 7500)] == said
    counts = (812, 1500, 12_400_000, 3.1e9, 2e12)
    assert [byte_count(n) for n in counts] == ["812 B", "1.5 kB", "12.4 MB", "3.1 GB", "2.0 TB"]
