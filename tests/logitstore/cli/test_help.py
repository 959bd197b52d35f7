"""Both programs alike: help that is readable, a version, and one spelling rule for options."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer

from distill import cli as distill_cli
from logitstore import __version__
from logitstore.capture.settings import PANELS
from logitstore.cli import app as logitstore_cli
from logitstore.console.entry import with_hyphens, with_underscores
from logitstore.ray.settings import PANEL
from tests.kit.paths import ROOT
from tests.logitstore.cli.conftest import Typed

PROGRAMS = {"logitstore": logitstore_cli.app, "distill": distill_cli.app}


#: Typer takes a pipe for a terminal where one of these is set.
_COLOURS = ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS")


def commands() -> list[tuple[str, str]]:
    found = []
    for program, app in PROGRAMS.items():
        made: Any = typer.main.get_command(app)
        found += [(program, name) for name in made.commands if name != "train"]
    return found


def options_of(program: str, command: str) -> list[Any]:
    made: Any = typer.main.get_command(PROGRAMS[program])
    return [p for p in made.commands[command].params if p.param_type_name == "option"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_its_version(program: str, typed: Typed) -> None:
    assert typed(program, "--version") == (0, f"{program} {__version__}\n", "")


@pytest.mark.parametrize(("program", "command"), [*((p, "") for p in PROGRAMS), *commands()])
def test_h_is_help_and_fits_80_columns(
    program: str, command: str, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = [command] if command else []
    status, text, err = typed(program, *words, "-h")
    assert (status, err) == (0, "")
    assert typed(program, *words, "--help") == (0, text, "")
    assert max(map(len, text.splitlines())) <= 80
    assert f"Usage: {' '.join([program, *words])}" in text


def help_text(*words: str, **environment: str) -> str:
    """What a pipe gets."""
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in _COLOURS}
        | {"COLUMNS": "80"}
        | environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout


def test_help_in_a_pipe_has_no_colours_and_is_the_same_without_them() -> None:
    plain = help_text("logitstore", "capture")
    assert "\x1b" not in plain
    assert help_text("logitstore", "capture", NO_COLOR="1") == plain
    ascii_alone = help_text("logitstore", "info", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert "--allow-partial" in ascii_alone


def test_the_help_of_capture_is_in_panels(typed: Typed) -> None:
    _, text, _ = typed("logitstore", "capture", "-h")
    headings = re.findall(r"^╭─ (.+?) ─+╮$", text, re.MULTILINE)
    assert headings == ["Arguments", "Options", *PANELS, PANEL]
    assert {"Teacher", "Data", "What is kept", "Running"} <= set(PANELS)


@pytest.mark.parametrize("command", ["capture", "estimate"])
def test_help_is_short_and_help_all_has_every_option_and_sentence(
    command: str, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, short, err = typed("logitstore", command, "--help")
    assert (status, err) == (0, "")
    assert len(short.splitlines()) < 160
    status, text, err = typed("logitstore", command, "--help-all")
    assert (status, err) == (0, "")
    assert typed("logitstore", command, "--help_all") == (0, text, "")
    assert max(map(len, text.splitlines())) <= 80
    lists = re.compile(r"^│ [ *]*(--[a-z-]+)", re.MULTILINE)
    every = {flag for option in options_of("logitstore", command) for flag in option.opts}
    shown = set(lists.findall(text))
    assert shown == {flag for flag in every if flag.startswith("--")} | {"--help"}
    assert set(lists.findall(short)) < shown
    assert {"--top-k", "--max-tail", "--dtype", "--help-all"} <= set(lists.findall(short))
    plain = " ".join(re.sub("[│ ]+", " ", text).split())
    assert "way=worker (all" in plain
    assert "way=worker" not in short


@pytest.mark.parametrize(("program", "command"), commands())
def test_a_default_is_shown_as_one_and_never_told_in_prose(program: str, command: str) -> None:
    for option in options_of(program, command):
        assert option.help, option.name
        assert re.match(r"[A-Z]", option.help), option.help
        assert "default" not in option.help.lower(), option.help


def test_train_says_where_its_flags_are_listed(typed: Typed) -> None:
    _, text, _ = typed("distill", "-h")
    shown = " ".join(text.split())
    assert "distill train also takes every flag of TrainingArguments of transformers" in shown
    assert "distill train --help-all lists them all" in shown


@pytest.mark.parametrize(("program", "command"), commands())
def test_an_underscore_means_the_same_as_a_hyphen(program: str, command: str, typed: Typed) -> None:
    """A usage error names the option as it is declared, however it was spelt."""
    wanted = [o for o in options_of(program, command) if "-" in o.opts[0][2:] and not o.is_flag]
    for option in wanted:
        flag = option.opts[0]
        spelt = "--" + flag[2:].replace("-", "_")
        for way in (flag, spelt):
            status, out, err = typed(program, command, way)
            assert (status, out) == (2, ""), way
            assert f"Option '{flag}' requires an argument" in err, err


def test_options_are_declared_once_each() -> None:
    for program, command in commands():
        for option in options_of(program, command):
            longs = [with_hyphens(opt) for opt in option.opts if opt.startswith("--")]
            assert len(set(longs)) == len(longs) == 1, option.opts


def test_one_rule_for_both_spellings() -> None:
    assert with_hyphens("max_new_tokens") == "max-new-tokens"
    assert with_underscores("--learning-rate=1e-4") == "--learning_rate=1e-4"
    assert with_underscores("--learning_rate-x") == "--learning_rate_x"
    for value in ("a-b", "-h", "1e-4", "my-store"):
        assert with_underscores(value) == value
