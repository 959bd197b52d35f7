"""Read from their source which losses there are and which flags they add, importing none of them.

A loss imports torch, which takes seconds. The help of `distill train`, and what is said of a flag
that does not exist, need only names, defaults and texts. So what a loss declares of these is
written as literals, a string or a number, and read here from its syntax tree.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from distill import losses

#: The place of a loss in lists, if it says none.
_LAST = 100
#: The files of flags that several losses read: those of the first losses, and of the last.
_FIRST, _THEN = "maps", "own_rate"


class Flag(NamedTuple):
    """A flag of a loss, as its file declares it.

    Attributes:
        name: Its name.
        default: Its default value.
        help: Its text.
        choices: Its possible values, if it is a word.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()


class _Declared(NamedTuple):
    name: str
    order: int
    flags: tuple[Flag, ...]


def loss_names() -> list[str]:
    """List the losses of this package, in the order of lists."""
    return [each.name for each in _declared()]


def loss_flags() -> list[Flag]:
    """List the flags that they add, in that order, each once."""
    own = [flag for each in _declared() for flag in each.flags]
    flags = [*_shared(_FIRST), *own, *_shared(_THEN)]
    return list({flag.name: flag for flag in flags}.values())


def _shared(file: str) -> Iterator[Flag]:
    (path,) = (path for path in _files() if path.stem == file)
    return _flags(_tree(path))


def _files() -> list[Path]:
    return sorted(path for folder in losses.__path__ for path in Path(folder).glob("*.py"))


def _declared() -> tuple[_Declared, ...]:
    return _declared_in(tuple(_files()))


@cache
def _declared_in(files: tuple[Path, ...]) -> tuple[_Declared, ...]:
    found = list[_Declared]()
    for path in files:
        for node in _tree(path).body:
            if _is_loss(node):
                calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
                orders = [_keyword(each, "order") for each in calls]
                order = next((each for each in orders if each is not None), _LAST)
                found.append(_Declared(path.stem, order, tuple(_flags(node))))
    return tuple(sorted(found, key=lambda each: (each.order, each.name)))


def _is_loss(node: ast.stmt) -> bool:
    """Tell whether a statement defines `LOSS`, as a declared function or as a `Loss`."""
    if isinstance(node, ast.FunctionDef):
        return node.name == "LOSS"
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(each, ast.Name) and each.id == "LOSS" for each in targets)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _flags(inside: ast.AST) -> Iterator[Flag]:
    """Read every `Option(…)` inside a node."""
    for node in ast.walk(inside):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Option":
            positional = dict(zip(Flag._fields, map(ast.literal_eval, node.args), strict=False))
            named = {name: _keyword(node, name) for name in Flag._fields}
            yield Flag(**positional | {k: v for k, v in named.items() if v is not None})


def _keyword(call: ast.Call, name: str) -> Any:
    """Read a keyword of a call, a literal; None if it is not given."""
    values = (each.value for each in call.keywords if each.arg == name)
    return next((ast.literal_eval(value) for value in values), None)
