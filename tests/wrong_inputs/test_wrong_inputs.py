"""Whatever is wrong with a request: one exact message, status 2, and nothing written.

The `.yaml` files beside this one are what users read, so every message is pinned word by word,
libraries' words included. Adding a way to be wrong is adding an entry:

    - wrong: what is wrong, in words of its own
      typed: the command, in the folder of `places.py`
      machine: what else is wrong with the machine, of `machine.py`, if anything
      says: the whole message, with `<here>` for that folder and `<digest>` for digests
"""

import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer
import yaml

from distill import cli as distill_cli
from distill.training import flag_names
from logitstore.capture.teacher.teacher import chosen_device
from logitstore.cli import app as logitstore_cli
from logitstore.console.entry import with_hyphens
from logitstore.errors import InputError
from tests.wrong_inputs import machine, places

TRAIN = "distill train --model_name_or_path student --store store --output_dir out --use_cpu"


class Wrong(NamedTuple):
    """An entry of a `.yaml` file."""

    wrong: str
    typed: str
    says: str
    machine: str | None = None

    @property
    def command(self) -> str:
        """What is typed, written out; a store of its own stands for the usual one."""
        usual = TRAIN.replace(" --store store", "") if "--store " in self.typed else TRAIN
        return re.sub(r"^TRAIN\b", usual, self.typed)


FILES = sorted(Path(__file__).parent.glob("*.yaml"))
WRONG = [
    Wrong(**entry) for file in FILES for entry in yaml.safe_load(file.read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return places.make(tmp_path_factory.mktemp("here"))


@pytest.fixture(autouse=True)
def one_plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever machine this is: the message lists its devices."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.parametrize("wrong", WRONG, ids=[each.wrong for each in WRONG])
def test_a_wrong_input_is_one_exact_message_status_2_and_nothing_written(
    wrong: Wrong,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(here)
    before = everything(here)
    monkeypatch.setattr(sys, "argv", shlex.split(wrong.command))
    main = distill_cli.main if wrong.command.startswith("distill") else logitstore_cli.main
    with monkeypatch.context() as broken:
        if wrong.machine is not None:
            machine.named(wrong.machine)(here, broken)
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "Traceback" not in err
    assert re.findall(r"^error: (.*)\Z", as_pinned(err, here), re.DOTALL | re.MULTILINE) == [
        wrong.says + "\n"
    ]
    assert everything(here) == before


def as_pinned(text: str, here: Path) -> str:
    """Without what differs from machine to machine."""
    return re.sub(r"\b[0-9a-f]{8,64}\b", "<digest>", text.replace(str(here), "<here>"))


def everything(folder: Path) -> dict[str, tuple[int, ...] | None]:
    """All files and folders below; of a file, what writing to it or replacing it changes."""
    found: dict[str, tuple[int, ...] | None] = {}
    for parent, folders, files in os.walk(folder):
        found |= {os.path.join(parent, name): None for name in folders}
        for path in (os.path.join(parent, name) for name in files):
            about = os.stat(path, follow_symlinks=False)
            found[path] = (about.st_ino, about.st_size, about.st_mtime_ns)
    return found


# ---- what every message has ----

#: How a sentence that says what to do begins.
STEPS = re.compile(
    r"(?:^|[.;,:?] |, or |then )"
    r"(?:Add|Change|Check|Choose|Convert|Copy|Download|Drop|Each line must|Fix|Give|Go on|Leave"
    r"|leave|Make|Name|Rename|Repair|Restore|Run|Save|See|Start|Tokenise|To start|Upgrade|Use"
    r"|Write|do not shift|run|use|A row reads|`logitstore repair)\b"
    r"|^--.* (?:expected .*|is required: .*)\.$"
)


@cache
def flags_of(program: str, command: str) -> set[str]:
    """Every spelling of every flag that a command has, and the names of its arguments."""
    if (program, command) == ("distill", "train"):
        flags = {f"--{name}" for name in flag_names.names()}
        return flags | {with_hyphens(flag) for flag in flags}
    app = logitstore_cli.app if program == "logitstore" else distill_cli.app
    found: Any = typer.main.get_command(app)
    params = found.commands[command].params if command else found.params
    return {"--help", *(flag for param in params for flag in param.opts)}


@cache
def commands_of(program: str) -> set[str]:
    app = logitstore_cli.app if program == "logitstore" else distill_cli.app
    found: Any = typer.main.get_command(app)
    return set(found.commands)


def named_commands(says: str) -> list[tuple[str, str]]:
    """(program, command) of everything in backticks that one could run."""
    found = re.findall(r"`(logitstore|distill)(?: (\w+))?[^`]*`", says)
    return [(program, command) for program, command in found]


@pytest.mark.parametrize("wrong", WRONG, ids=[each.wrong for each in WRONG])
def test_a_message_says_where_and_what_and_a_next_step_that_exists(wrong: Wrong) -> None:
    program, *typed = shlex.split(wrong.command)
    command = typed[0] if typed and typed[0] in commands_of(program) else ""
    assert "\n" not in wrong.says
    assert len(wrong.says) <= 420, "a few lines at most"
    first = re.split(r"[.;] ", wrong.says)[0]
    own = flags_of(program, command)
    # where: what was typed, the folder it was typed in, or a flag or argument of the command
    places = {word.lstrip("-") for word in typed} | own | {"<here>", "WORLD_SIZE"}
    assert any(
        re.search(rf"(?<!\w){re.escape(place)}(?!\w)", first) for place in places if place[1:]
    )
    # what: more than the place
    assert len(first.split()) >= 3
    # next: one sentence tells what to do, with commands and flags that are there
    assert STEPS.search(wrong.says), wrong.says
    known = set(own)
    for other_program, other in named_commands(wrong.says):
        assert not other or other in commands_of(other_program), other
        known |= flags_of(other_program, other)
    assert set(flags_in(wrong.says)) - known - set(flags_in(wrong.command)) == set()


def flags_in(text: str) -> list[str]:
    """Flags that a text names, but for those of other programs."""
    ours = re.sub(r"`(?:pip|ray) [^`]*`", "", text)
    return re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", ours)


def test_names_and_commands_are_there_once() -> None:
    assert len(WRONG) >= 160
    assert len({each.wrong for each in WRONG}) == len(WRONG)
    assert len({(each.command, each.machine) for each in WRONG}) == len(WRONG)


def test_a_device_is_one_of_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [str(chosen_device(d)) for d in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    for name in ("cuda:2", "cuda:-1", "xpu", "meta", ""):
        with pytest.raises(InputError, match=r"no such device; found cpu, cuda:0, cuda:1\. Name"):
            chosen_device(name)
