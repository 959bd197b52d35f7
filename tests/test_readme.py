"""The README is true: its commands and its Python run as printed, one after the other."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import distill.cli
import logitstore.cli.app
from tests.kit.page_fixtures import Call
from tests.kit.pages import (
    as_pattern,
    blocks,
    check_printed,
    commands_in,
    in_shell,
    is_ours_alone,
)
from tests.kit.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = ("bash", "python")
SETS_UP = "bash tools/"  # the two commands that make an environment: this one exists


def test_the_first_screen_names_both_commands() -> None:
    first_screen = README.splitlines()[:25]
    assert {"bash tools/demo.sh", "bash tools/test.sh"} <= {
        line.split("  ")[0].strip() for line in first_screen
    }


def test_every_block_runs_as_printed(
    page_folder: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that needs no torch in a shell; the others need not load it again in a process each."""
    executed = [
        (lang, code) for lang, code in blocks(README) if lang in RUN and SETS_UP not in code
    ]
    assert len(executed) >= 3
    in_a_shell = 0
    for language, code in executed:
        if language == "python":
            exec(code, {"__name__": "__main__"})
            printed = capsys.readouterr().out
        elif is_ours_alone(code) and not code.startswith("logitstore show "):
            printed = "".join(call(*words) for words in commands_in(code))
        else:
            printed, in_a_shell = in_shell(code, page_folder), in_a_shell + 1
        check_printed(code, printed)
    assert in_a_shell > 0
    assert (page_folder / "trained" / "model.safetensors").exists()


def test_a_block_is_started_in_a_shell_unless_it_is_commands_of_ours_alone() -> None:
    assert is_ours_alone("logitstore info s\n# s\ndistill train \\\n    --seed 3\n")
    assert commands_in("distill train \\\n    --seed 3\n") == [["distill", "train", "--seed", "3"]]
    for code in ("logitstore info s | head\n", "cd s\n", "logitstore info $S\n", "ls\n"):
        assert not is_ours_alone(code)


def test_it_is_short_and_says_what_is_printed_beneath_commands() -> None:
    assert len(README.splitlines()) <= 100
    shown = [line for lang, code in blocks(README) if lang == "bash" for line in code.splitlines()]
    assert sum(line.startswith("# ") for line in shown) >= 8
    assert as_pattern("1 shards, 40 rows: …").fullmatch("2 shards,  1,153 rows: whole")
    assert not as_pattern("1 shards: whole").fullmatch("1 shards: damaged")


def test_every_file_it_links_to_exists() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_flag_it_names_exists(call: Call) -> None:
    """Flags in running text, which no block executes."""
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) - {
        "--quick",
        "--slow",
    }
    known = "".join(help_of(call, *command.split()) for command in COMMANDS)
    missing = [flag for flag in sorted(named) if not re.search(rf"{flag}(?![\w-])", known)]
    assert missing == []


COMMANDS = (
    "logitstore capture",
    "logitstore info",
    "logitstore show",
    "logitstore export",
    "distill train",
    "distill evaluate",
    "distill coverage",
    "distill compare",
)


def help_of(call: Call, program: str, command: str) -> str:
    if command == "train":  # its help is that of TrainingArguments
        return call(program, command, "--help")
    app = {"logitstore": logitstore.cli.app.app, "distill": distill.cli.app}[program]
    flag = "--help-all" if command == "capture" else "--help"
    shown = CliRunner().invoke(app, [command, flag], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    return shown.output
