"""Tell what is wrong with the words that flags choose between, before anything slow is imported.

A misspelt `--loss`, `--preset` or `--uncovered` is told at once, also one in the file of --config;
numbers and paths are left to the parser.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from distill.losses.advice import AUTO
from distill.losses.in_source import loss_flags
from distill.losses.names import check_loss
from distill.student.arguments import StudentArguments
from distill.training.arguments import RunArguments
from distill.training.flag_file import read_flag_file
from distill.training.flag_names import names, unknown
from distill.training.presets import flags_of
from logitstore.console.entry import with_underscores
from logitstore.errors import InputError


def check_values(argv: Sequence[str]) -> None:
    """Check the words that the flags choose, and the keys and words of a `--config` file.

    Raises:
        InputError: One is not known; names those that are.
    """
    typed = dict(_typed(argv))
    _check(typed)
    if typed.get("config"):
        path = Path(typed["config"])
        if path.is_file():  # a pipe can be read once alone, by the parser
            _check_file(path, typed)


def _typed(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each flag with its first value; a flag without one has none."""
    for i, word in enumerate(argv):
        if word.startswith("--"):
            name, equals, value = with_underscores(word)[2:].partition("=")
            behind = argv[i + 1] if i + 1 < len(argv) else "--"
            if equals or not behind.startswith("--"):
                yield name, value if equals else behind


def _check_file(path: Path, typed: Mapping[str, str]) -> None:
    known = names() - {"config", "help", "help_all", "json"}
    found = dict[str, str]()
    for key, value in read_flag_file(path).items():
        name = with_underscores(f"--{key}").removeprefix("--")
        if known and name not in known:
            raise InputError(f"--config {path}: " + unknown(str(key), known, "key"))
        if isinstance(value, str) and name not in typed:  # YAML makes of `off` something else
            found[name] = value
    try:
        _check(found)
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from error


def _check(given: Mapping[str, str]) -> None:
    if given.get("preset"):
        flags_of(given["preset"])
    if "loss" in given and given["loss"] != AUTO:
        check_loss(given["loss"])
    for name, choices in _choices().items():
        if name in given and given[name] not in choices:
            known = ", ".join(choices)
            raise InputError(f"--{name} {given[name]}: not known. Known: {known}. Name one.")


def _choices() -> dict[str, tuple[Any, ...]]:
    """List the flags that have a few words to choose between, and these."""
    ours = [each for kind in (StudentArguments, RunArguments) for each in fields(kind)]
    found = {each.name: get_args(each.type) for each in ours if get_origin(each.type) is Literal}
    return found | {flag.name: flag.choices for flag in loss_flags() if flag.choices}
