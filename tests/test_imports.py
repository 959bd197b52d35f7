"""Who may import whom: no circle, nothing imports upwards, and reading a store costs no torch.

The imports are read from the source, those inside functions and under `TYPE_CHECKING` too: what two
modules must know of each other is one module, or belongs below both.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

#: Upper layers first; each may import itself and what stands below it.
LAYERS = ("tests", "tools", "distill", "logitstore")
#: The rooms of each package, a floor a line, from the ground up: a room may import those of lower
#: floors, and itself. A folder is one room, and so is a module right in the package.
FLOORS = {
    "logitstore": (
        ("errors",),
        ("storage",),
        ("console",),  # a page is written whole or not at all
        ("records",),  # `_repr_html_` is a table of the console's
        ("format",),
        ("info", "models"),
        ("reading", "text"),
        ("writing", "rows"),
        ("store",),
        ("checking",),
        ("capture", "inspection", "moving"),
        ("ray",),
        ("testing", "cli"),
    ),
    "distill": (
        ("environment", "alignment", "head"),
        ("losses",),
        ("student", "report"),
        ("data",),
        ("evaluation",),
        ("training",),
        ("cli",),
    ),
}
#: Faces of a package: they hand on names of every floor, most when asked for.
FACES = ("__init__", "__main__")
HEAVY = ("torch", "transformers", "datasets", "tokenizers", "accelerate")


@cache
def imported(path: Path, *, at_type_checking: bool = True) -> frozenset[str]:
    """Every module that the file imports, anywhere in it."""
    tree: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree if at_type_checking else _Executed().visit(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


class _Executed(ast.NodeTransformer):
    """Drops what only a type checker reads."""

    def visit_If(self, node: ast.If) -> ast.AST:
        return ast.Pass() if ast.unparse(node.test).endswith("TYPE_CHECKING") else node


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(package: str) -> dict[str, set[str]]:
    """Which modules of the package each of its modules imports, faces left out."""
    paths = [path for path in sources(package) if path.stem not in FACES]
    modules = {module_of(path) for path in paths}
    return {
        module_of(path): {name for name in imported(path) if name in modules} - {module_of(path)}
        for path in paths
    }


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, straight or through others: Tarjan's components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(arrows[module]):
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in sorted(arrows):
        if module not in index:
            visit(module)
    return found


def upward(package: str, arrows: Mapping[str, set[str]]) -> list[str]:
    """`module imports module` for every import that does not go down to a lower floor."""
    floor = {room: n for n, rooms in enumerate(FLOORS[package]) for room in rooms}
    found = []
    for module, targets in arrows.items():
        room = module.split(".")[1]
        for target in sorted(targets):
            below = target.split(".")[1]
            if room != below and floor[below] >= floor[room]:
                found.append(f"{module} imports {target}")
    return found


def offenders(paths: list[Path], *forbidden: str, at_type_checking: bool = True) -> list[str]:
    """`file imports module` for every import at or below a forbidden one."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in sorted(imported(path, at_type_checking=at_type_checking))
        if any(name == top or name.startswith(f"{top}.") for top in forbidden)
    ]


@pytest.mark.parametrize("package", FLOORS)
def test_no_modules_import_each_other(package: str) -> None:
    assert circles(arrows(package)) == []


@pytest.mark.parametrize("package", FLOORS)
def test_a_room_imports_only_rooms_of_lower_floors(package: str) -> None:
    assert upward(package, arrows(package)) == []


def test_the_floors_name_every_room_and_no_other() -> None:
    for package, floors in FLOORS.items():
        folder = ROOT / package
        rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
        rooms |= {path.stem for path in folder.glob("*.py")} - set(FACES)
        assert sorted(room for rooms_ in floors for room in rooms_) == sorted(rooms)


def test_a_stranger_finds_his_way() -> None:
    """What a first look shows: few folders, few modules beside them, few floors."""
    assert len(FLOORS["logitstore"]) <= 13
    assert len(FLOORS["distill"]) <= 7
    for package, folders, modules in (("logitstore", 15, 4), ("distill", 8, 2)):
        folder = ROOT / package
        assert len(list(folder.glob("*/__init__.py"))) <= folders
        assert len({path.stem for path in folder.glob("*.py")} - set(FACES)) <= modules


def test_a_circle_and_an_upward_import_would_be_seen() -> None:
    ring = {"logitstore.errors": {"logitstore.cli.app"}, "logitstore.cli.app": set[str]()}
    assert upward("logitstore", ring) == ["logitstore.errors imports logitstore.cli.app"]
    assert circles(ring) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "module",
    [
        "logitstore",
        "logitstore.cli",
        "logitstore.ray",
        "logitstore.testing.stores",
        "distill.alignment.align",
    ],
)
def test_reading_a_store_loads_neither_torch_nor_transformers(module: str) -> None:
    heavy = {*HEAVY, "zarr", "pandas", "ray"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("layer", LAYERS[1:])  # nothing is above the first
def test_packages_import_one_way(layer: str) -> None:
    above = LAYERS[: LAYERS.index(layer)]
    paths = sources(layer)
    assert paths
    assert offenders(paths, *above) == []


def test_only_the_teacher_pass_and_a_dataset_of_tensors_import_torch_in_logitstore() -> None:
    may = {ROOT / "logitstore" / name for name in ("capture", "models", "ray", "testing")}
    may.add(ROOT / "logitstore/reading/torch_dataset.py")
    readers = [p for p in sources("logitstore") if not may & {p, *p.parents}]
    assert offenders(readers, "torch", at_type_checking=False) == []


def test_a_loss_imports_torch_numpy_and_what_describes_a_loss() -> None:
    """Its formula is of tensors, its arrays are numpy's; it knows no store or student."""
    describing = ("loss", "aligned", "declared", "given", "maps", "one_scale", "own_rate")
    describing = (*describing, "teacher_head", "whole")
    others = ("advice", "in_source", "names", "own", "requirements", "uses", "weights")
    machinery = ("__init__", *others, *describing)
    paths = [path for path in sources("distill/losses") if path.stem not in machinery]
    assert paths
    may = {"torch", "numpy", *(f"distill.losses.{name}" for name in describing)}
    may.add("distill.losses.tail_kl")  # its divergences are part of others' formulas
    for path in paths:
        others = {
            name for name in imported(path) if name.split(".")[0] not in sys.stdlib_module_names
        }
        assert offenders([path], *(name for name in others if not _is_below(name, may))) == []


def _is_below(name: str, may: set[str]) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in may)


def test_the_style_of_import_does_not_hide_an_offender(tmp_path: Path) -> None:
    late, module, typed = (tmp_path / f"{name}.py" for name in ("late", "module", "typed"))
    late.write_text("def late():\n    from torch import nn\n")
    assert "torch" in imported(late)
    module.write_text("from logitstore import store")
    assert "logitstore.store" in imported(module)
    typed.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n")
    assert "torch" in imported(typed)
    assert "torch" not in imported(typed, at_type_checking=False)
