"""Read the flags of TrainingArguments from its source, since importing it takes seconds.

What a field's default or text is computed from is not known here; then it is left out.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

_MODULE, _CLASS = "training_args.py", "TrainingArguments"


class TrainerFlag(NamedTuple):
    """A flag of TrainingArguments.

    Attributes:
        name: Its name.
        default: Its default value; None also where it is computed.
        help: Its text; empty where it is computed.
    """

    name: str
    default: Any
    help: str


@cache
def trainer_flags() -> tuple[TrainerFlag, ...]:
    """List the flags in the order of their declaration; none if the source is not as expected."""
    found = find_spec("transformers")
    folders = found.submodule_search_locations if found else None
    path = Path(folders[0]) / _MODULE if folders else Path()
    if not path.is_file():
        return ()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == _CLASS:
            fields = (each for each in node.body if isinstance(each, ast.AnnAssign))
            return tuple(map(_flag, fields))
    return ()


def _flag(field: ast.AnnAssign) -> TrainerFlag:
    default = field.value
    help = ""
    if isinstance(default, ast.Call):  # field(default=…, metadata={"help": …})
        given = {each.arg: each.value for each in default.keywords}
        metadata = _literal(given.get("metadata"))
        help = str(metadata.get("help", "")) if isinstance(metadata, dict) else ""
        default = given.get("default")
    return TrainerFlag(ast.unparse(field.target), _literal(default), help)


def _literal(node: ast.expr | None) -> Any:
    """Return the value of a literal; None for anything else."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
