"""Read a file of flags for `--config`: YAML, of which little is needed and less is believed.

YAML can say much in a few lines: a list of aliases of lists of aliases stands for a billion values,
and what looks like a date is one, or an error; and thousands of lists in each other take the parser
half a minute. So a file is small, an alias is of one value, and few things lie in each other.
"""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from logitstore.errors import InputError

_MAX_BYTES = 256 * 1024
_MAX_DEPTH = 20  # of lists and mappings; flags need two or three


def read_flag_file(path: Path) -> dict[Any, Any]:
    """Read the `key: value` lines of a file.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:  # or a pipe: `--config <(…)`
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")  # noqa: TRY301
        text = data.decode()
        _check_structure(text)
        loaded = yaml.safe_load(text)
    # A value that only looks like a date or a number is a ValueError.
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"--config {path}: cannot be read as YAML ({why}). Give a file of lines such as "
            "`learning_rate: 1e-4`."
        ) from error
    if not isinstance(loaded, dict):
        found = "nothing" if loaded is None else type(loaded).__name__
        raise InputError(
            f"--config {path}: expected `key: value` lines, found {found}. Give lines such as "
            "`learning_rate: 1e-4`."
        )
    return loaded


def _check_structure(text: str) -> None:
    """Check that nothing in a YAML text stands for more than is written, or lies too deep.

    Raises:
        ValueError: An alias is of a list or of a mapping, or one of these lies in too many others.
    """
    nested, depth = set(), 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            nested.add(event.anchor)
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError("it is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and event.anchor in nested:
            raise ValueError(f"*{event.anchor} is an alias of more than one value")
