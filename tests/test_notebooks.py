"""Notebooks of the documentation run from the first cell to the last, and are kept without outputs.

No kernel is started: a cell is run here, and its lines that begin with `!` are commands of ours.
"""

import ast
import json
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distill.cli
import logitstore.cli
from tests.kit.commands import runner
from tests.kit.paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
NAMES = [path.name for path in NOTEBOOKS]
Commands = Callable[[str], str]


def cells(path: Path) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def lines_of(cell: str) -> list[str]:
    return cell.replace("\\\n", " ").splitlines()


def python_of(cell: str) -> str:
    return "\n".join(line for line in lines_of(cell) if not line.startswith("!"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_kept_without_what_a_run_leaves(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse(python_of("".join(cell["source"])))


def test_every_notebook_is_linked() -> None:
    assert NOTEBOOKS
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    for path in NOTEBOOKS:
        assert f"]({path.relative_to(ROOT / 'docs')})" in pages


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    mains = {"logitstore": logitstore.cli.main, "distill": distill.cli.main}

    def called(line: str) -> str:
        program, *words = shlex.split(line)
        status, out, err = runner(program, mains[program], monkeypatch, capsys)(*words)
        assert status == 0, f"{line}\n{out}\n{err}"
        return out

    return called


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(
    path: Path, call: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown: list[object] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in cells(path):
            shown += [call(line[1:]) for line in lines_of(cell) if line.startswith("!")]
            shown.append(run(python_of(cell), names))
    assert all(html(value) for value in shown if value is not None)
    assert any("conclusive" in str(value) for value in shown), "the verdict of compare"


def run(code: str, names: dict[str, Any]) -> object:
    """Run a cell as a kernel does; the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def html(value: object) -> str:
    """What a notebook shows of a value."""
    return value._repr_html_() if hasattr(value, "_repr_html_") else str(value)
