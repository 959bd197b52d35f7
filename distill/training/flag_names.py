"""Tell what is wrong with the names of typed flags before anything slow is imported."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from distill.losses.in_source import loss_flags
from distill.student import arguments as student
from distill.training import arguments as run
from distill.training.trainer_flags import trainer_flags
from logitstore.console.entry import with_underscores
from logitstore.errors import InputError

#: Flags that are no settings of a run.
_OTHERS = ("preset", "config", "json", "help", "help_all")


def names() -> frozenset[str]:
    """List the names of all flags, without dashes; none if those of TrainingArguments are unknown.

    A switch that is on also has a flag that begins with `no_`.
    """
    trainers = trainer_flags()
    if not trainers:
        return frozenset()
    ours = [f for each in (student.StudentArguments, run.RunArguments) for f in fields(each)]
    defaults: dict[str, Any] = {flag.name: flag.default for flag in trainers}
    defaults |= {flag.name: flag.default for flag in loss_flags()}
    defaults |= {each.name: each.default for each in ours}
    switched_off = (f"no_{name}" for name, default in defaults.items() if default is True)
    return frozenset([*defaults, *switched_off, *_OTHERS])


def check_names(argv: Sequence[str]) -> None:
    """Check that every flag exists, and that none is missing that all runs need.

    Raises:
        InputError: For an unknown flag (names the nearest), or a missing one.
    """
    known = names()
    flags = [word for word in argv if word.startswith("--")]
    given = {_name(flag) for flag in flags}
    for flag in flags:
        if known and _name(flag) not in known:
            raise InputError(unknown(flag.split("=")[0], known, "flag"), kind="usage")
    if "config" in given:  # it may have the others
        return
    for name, message in run.NEEDED.items():
        if name not in given:
            raise InputError(message)
    if given.isdisjoint({"model_name_or_path", "student_config"}):
        raise InputError(student.NEEDED)


def _name(flag: str) -> str:
    return with_underscores(flag).removeprefix("--").split("=")[0]


def unknown(given: str, known: Iterable[str], what: str) -> str:
    """Say that a name does not exist, and name the nearest.

    Args:
        given: What was typed.
        known: Names that exist.
        what: `flag` or `key`.
    """
    name = with_underscores(given).lstrip("-").split("=")[0]
    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)
    if not given.startswith("-") and what == "flag":
        return f"{given!r} is neither a flag nor the value of one. See `distill train --help`."
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"no {what} is called {given}.{hint} See `distill train --help`."
