"""The README is true: its commands and its Python run as printed, one after the other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETS_UP = "bash tools/"  # the two commands that make an environment: this one exists


def blocks() -> list[tuple[str, str]]:
    """(language, code) of every fenced block that names a language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run(language: str, code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    scripts = Path(sys.executable).parent
    command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    return subprocess.run(
        [*command[language], code],
        cwd=folder,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


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


def test_every_block_runs_as_printed(folder: Path) -> None:
    executed = [(lang, code) for lang, code in blocks() if not code.startswith(SETS_UP)]
    assert len(executed) >= 5
    for language, code in executed:
        done = run(language, code, folder)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert (folder / "trained" / "model.safetensors").exists()


def test_every_file_it_links_to_exists() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_flag_it_names_exists() -> None:
    """Flags in running text, which no block executes."""
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) - {
        "--quick",
        "--slow",
        "--model",
        "--model_args",
    }
    known = "".join(
        subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        for command in (
            ("logitstore", "capture", "--help"),
            ("logitstore", "info", "--help"),
            ("logitstore", "show", "--help"),
            ("logitstore", "import", "--help"),
            ("logitstore", "export", "--help"),
            ("logitstore", "subset", "--help"),
            ("distill", "train", "--help"),
            ("distill", "evaluate", "--help"),
            ("distill", "coverage", "--help"),
            ("distill", "compare", "--help"),
        )
    )
    missing = [flag for flag in sorted(named) if not re.search(rf"{flag}(?![\w-])", known)]
    assert missing == []
