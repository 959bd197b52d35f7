"""Who may import whom: reading a store costs no torch, and nothing imports upwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

#: Upper layers first; each may import itself and what stands below it.
LAYERS = ("tests", "tools", "distill", "logitstore")


def imported(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it, except under `if TYPE_CHECKING`."""
    names: set[str] = set()
    for node in ast.walk(_Executed().visit(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


class _Executed(ast.NodeTransformer):
    """Drops what only a type checker reads."""

    def visit_If(self, node: ast.If) -> ast.AST:
        return ast.Pass() if ast.unparse(node.test).endswith("TYPE_CHECKING") else node


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def offenders(paths: list[Path], *forbidden: str) -> list[str]:
    """`file imports module` for every import at or below a forbidden one."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in sorted(imported(path))
        if any(name == top or name.startswith(f"{top}.") for top in forbidden)
    ]


@pytest.mark.parametrize("module", ["logitstore", "logitstore.cli.app", "distill.alignment.align"])
def test_reading_a_store_loads_neither_torch_nor_transformers(module: str) -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'tokenizers', 'zarr', 'pandas'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer: str) -> None:
    above = LAYERS[: LAYERS.index(layer)]
    # A maintainer's script right under tools/ may use what the tests make; the demo may not.
    paths = sources("tools/demo" if layer == "tools" else layer)
    assert paths
    assert offenders(paths, *above) == []


def test_only_the_teacher_pass_imports_torch_in_logitstore() -> None:
    readers = [path for path in sources("logitstore") if path.parent.name != "capture"]
    assert offenders(readers, "torch") == []


def test_a_store_knows_nothing_of_how_it_was_captured() -> None:
    lower = {"codec", "encode", "archive", "arrays", "lines", "shard", "commit", "spec", "store"}
    paths = [path for path in sources("logitstore") if path.stem in lower]
    assert len(paths) == len(lower)
    assert offenders(paths, "logitstore.capture", "logitstore.cli.app") == []
    below_store = [path for path in paths if path.stem in lower - {"store"}]
    assert offenders(below_store, "logitstore.store") == []


def test_a_loss_imports_torch_only() -> None:
    paths = [path for path in sources("distill/losses") if path.name != "__init__.py"]
    assert paths
    for path in paths:
        tops = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names
        assert tops <= {"torch"}, path


def test_the_style_of_import_does_not_hide_an_offender(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def late():\n    from torch import nn\n")
    assert "torch" in imported(path)
    path.write_text("from logitstore import store")
    assert "logitstore.store" in imported(path)
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n")
    assert "torch" not in imported(path)
