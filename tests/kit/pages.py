"""Read and run what a page of documentation prints: commands, and what stands beneath them."""

import os
import re
import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block that names a language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def is_ours_alone(code: str) -> bool:
    """Whether every line is a command of ours and nothing that only a shell understands."""
    lines = code.replace("\\\n", " ").splitlines()
    return all(line.startswith(("#", "logitstore ", "distill ")) for line in lines) and not set(
        re.sub(r"^#.*$", "", code, flags=re.MULTILINE)
    ) & set("|&;<>$`*~")


def commands_in(code: str) -> list[list[str]]:
    """The words of every command of a block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if not line.startswith("#")]


def in_shell(code: str, folder: Path) -> str:
    """Run a block in a shell that finds what was installed; what it prints."""
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def as_pattern(line: str) -> "re.Pattern[str]":
    """What may be printed for a line of a page: other numbers, and anything for its `…`."""
    parts = (re.escape(part) for part in re.split(r"[\d.,]*\d|…|\s+", line))
    marks = re.findall(r"[\d.,]*\d|…|\s+", line)
    patterns = [r"\s+" if m.isspace() else ".*" if m == "…" else r"[\d.,]*\d" for m in marks]
    return re.compile(
        "".join(x for pair in zip_longest(parts, patterns, fillvalue="") for x in pair)
    )


def check_printed(code: str, printed: str) -> None:
    """Check that the comments of a block stand, in order, in what it printed."""
    lines = iter(printed.splitlines())
    for line in re.findall(r"^# (.*)$", code, re.MULTILINE):
        assert any(map(as_pattern(line).fullmatch, lines)), f"{line}\n{printed}"
