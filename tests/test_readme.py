"""The README is true: its commands and its Python run as printed, one after the other."""

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
from typer.testing import CliRunner

import distill.cli
import logitstore.cli
import logitstore.cli.app
from logitstore.testing import tiny
from tests.kit.commands import runner
from tests.kit.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = ("bash", "python")
SETS_UP = "bash tools/"  # the two commands that make an environment: this one exists


def blocks() -> list[tuple[str, str]]:
    """(language, code) of every fenced block that names a language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def is_ours_alone(code: str) -> bool:
    """Whether every line is a command of ours and nothing that only a shell understands."""
    lines = code.replace("\\\n", " ").splitlines()
    return all(line.startswith(("#", "logitstore ", "distill ")) for line in lines) and not set(
        re.sub(r"^#.*$", "", code, flags=re.MULTILINE)
    ) & set("|&;<>$`*~")


def commands_in(code: str) -> list[list[str]]:
    """The words of every command of a block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("#")]


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


Call = Callable[..., str]


@pytest.fixture
def call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Run a command in this process, in the folder; what it prints."""
    mains = {"logitstore": logitstore.cli.main, "distill": distill.cli.main}
    monkeypatch.chdir(folder)

    def calls(program: str, *words: str) -> str:
        status, out, err = runner(program, mains[program], monkeypatch, capsys)(*words)
        assert status == 0, f"{program} {shlex.join(words)}\n{out}\n{err}"
        return out

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield calls


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README says a user has: `teacher`, `student`, and three datasets."""
    folder = tmp_path_factory.mktemp("readme")
    for name, tokenizer in (("teacher", tiny.byte_bpe()), ("student", tiny.unigram())):
        tiny.save(folder / name, tiny.llama(len(tokenizer)), tokenizer)
    texts = tiny.corpus()
    for name, rows in (("train", texts[:-8]), ("heldout", texts[-8:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts[:5])
    (folder / "prompts.jsonl").write_text(lines)
    return folder


def test_the_first_screen_names_both_commands() -> None:
    first_screen = README.splitlines()[:25]
    assert {"bash tools/demo.sh", "bash tools/test.sh"} <= {
        line.split("  ")[0].strip() for line in first_screen
    }


def test_every_block_runs_as_printed(
    folder: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that needs no torch in a shell; the others need not load it again in a process each."""
    executed = [(lang, code) for lang, code in blocks() if lang in RUN and SETS_UP not in code]
    assert len(executed) >= 4
    in_a_shell = 0
    for language, code in executed:
        if language == "python":
            exec(code, {"__name__": "__main__"})
            printed = capsys.readouterr().out
        elif is_ours_alone(code) and not code.startswith("logitstore show "):
            printed = "".join(call(*words) for words in commands_in(code))
        else:
            printed, in_a_shell = in_shell(code, folder), in_a_shell + 1
        lines = iter(printed.splitlines())
        for line in re.findall(r"^# (.*)$", code, re.MULTILINE):
            assert any(map(as_pattern(line).fullmatch, lines)), f"{line}\n{printed}"
    assert in_a_shell > 0
    assert (folder / "trained" / "model.safetensors").exists()
    assert (folder / "trained-too").is_dir()


def test_a_block_is_started_in_a_shell_unless_it_is_commands_of_ours_alone() -> None:
    assert is_ours_alone("logitstore info s\n# s\ndistill train \\\n    --seed 3\n")
    assert commands_in("distill train \\\n    --seed 3\n") == [["distill", "train", "--seed", "3"]]
    for code in ("logitstore info s | head\n", "cd s\n", "logitstore info $S\n", "ls\n"):
        assert not is_ours_alone(code)


def as_pattern(line: str) -> "re.Pattern[str]":
    """What may be printed for a line of the README: other numbers, and anything for its `…`."""
    parts = (re.escape(part) for part in re.split(r"[\d.,]*\d|…|\s+", line))
    marks = re.findall(r"[\d.,]*\d|…|\s+", line)
    patterns = [r"\s+" if m.isspace() else ".*" if m == "…" else r"[\d.,]*\d" for m in marks]
    return re.compile(
        "".join(x for pair in zip_longest(parts, patterns, fillvalue="") for x in pair)
    )


def test_it_is_short_and_says_what_is_printed_beneath_commands() -> None:
    assert len(README.splitlines()) <= 150
    shown = [line for lang, code in blocks() if lang == "bash" for line in code.splitlines()]
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
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    return shown.output
