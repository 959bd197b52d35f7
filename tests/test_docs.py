"""The documentation is true: what it prints runs or compiles, and what it names exists."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import distill.cli
import logitstore.cli.app
from distill.training.flag_names import names
from logitstore.console.entry import with_hyphens
from tests.kit.page_fixtures import Call
from tests.kit.pages import blocks, check_printed, commands_in
from tests.kit.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
APPS = {"logitstore": logitstore.cli.app.app, "distill": distill.cli.app}
#: Whose blocks are executed, one after the other, in a folder with `teacher`, `student` and data.
EXECUTED = ("ten-minutes.md", "own-logits.md", "train.md", "from-python.md")
#: What names the numbers that are logged.
LOGGING = ("meter", "loss_terms", "trainer", "evaluating_trainer")
#: They stand for a command's further flags.
REST = ("…", "...")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def nav(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    values = part.values() if isinstance(part, dict) else part
    return [page for each in values for page in nav(each)]


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load(read(ROOT / "mkdocs.yml"))
    pages = [str(page.relative_to(DOCS)) for page in PAGES]
    assert sorted(nav(config["nav"])) == sorted(pages)
    assert config["strict"] is True


@pytest.mark.parametrize("name", EXECUTED)
def test_a_page_runs_as_printed(
    name: str, page_folder: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = 0
    for language, code in blocks(read(DOCS / name)):
        if language == "bash":
            check_printed(code, "".join(call(*words) for words in commands_in(code)))
        elif language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(code, {"__name__": "__main__"})
            capsys.readouterr()
        ran += language in ("bash", "python")
    assert ran > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_yaml_is_yaml(page: Path) -> None:
    for language, code in blocks(read(page)):
        if language == "python":
            compile(code, str(page), "exec")
        if language == "yaml":
            keys = set(yaml.safe_load(code))
            assert keys <= names(), keys - names()


def flags_of(program: str, command: str) -> set[str]:
    if (program, command) == ("distill", "train"):
        return {with_hyphens(f"--{name}") for name in names()}
    found: Any = typer.main.get_command(APPS[program])
    return {flag for each in found.commands[command].params for flag in each.opts} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_flag_of_a_block_exists(page: Path) -> None:
    for language, code in blocks(read(page)):
        if language not in ("bash", "text"):
            continue
        for program, command, *words in filter(None, commands_in(code)):
            if program not in APPS:
                continue
            known = flags_of(program, command)
            flags = {with_hyphens(w.split("=")[0]) for w in words if w.startswith("--")}
            assert flags <= known, f"{program} {command}: {flags - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_in_running_text_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    of_launchers = {"--nproc-per-node"}
    known = of_launchers | flags_of("distill", "train")
    for program, app in APPS.items():
        made: Any = typer.main.get_command(app)
        known |= {flag for name in made.commands for flag in flags_of(program, name)}
    found = {with_hyphens(flag) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert found <= known, found - known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_and_included_files_exist(page: Path) -> None:
    text = read(page)
    for link in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    for included in re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE):
        assert (ROOT / included).exists(), included


def test_every_number_that_a_run_logs_is_in_the_table_of_them() -> None:
    """Those that only some runs have are read from the source that names them."""
    table = read(DOCS / "logged-numbers.md").split("## ")[0]
    said = set(re.findall(r"`([a-z_]+)`", table))
    sources = "".join(read(ROOT / f"distill/training/{name}.py") for name in LOGGING)
    logged = set(re.findall(r"report\[\"(\w+)\"\] = ", sources))
    logged |= set(re.findall(r"\"(train_\w+)\": self\._total", sources))
    logged |= {
        "ce_loss",
        "learning_rate",
        "epoch",
        "grad_norm",
        "covered_fraction",
    }  # Trainer's too
    assert {"template_changed_text", "train_template_changed_text", "kd_gap", "aux_loss"} <= logged
    assert logged - said == set()
    trained = {"train_loss", "train_runtime", "train_samples_per_second", "total_flos"}
    assert trained | {"train_steps_per_second"} <= said


def test_the_table_of_times_is_the_arithmetic_that_stands_above_it() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| ([\d.]+) B \| ([\d,]+) \| ([\d.]+) (min|h) \| ([\d.]+) h \|$",
        read(DOCS / "how-large.md"),
        re.MULTILINE,
    )
    assert len(rows) == 4
    for billions, tokens_s, short, unit, long in rows:
        exact = 0.4 * 990e12 / (2e9 * float(billions))
        assert float(tokens_s.replace(",", "")) == pytest.approx(exact, rel=0.02)
        assert float(short) * {"min": 60, "h": 3600}[unit] == pytest.approx(1e8 / exact, rel=0.05)
        assert float(long) * 3600 == pytest.approx(1e9 / exact, rel=0.05)
