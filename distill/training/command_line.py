"""Read the flags of a student run, and the file after `--config`, into its configuration.

The keys of the file are the flags without their dashes. A key or flag that does not exist is an
error that names the nearest one.
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from distill.losses import all_options, find
from distill.losses.advice import AUTO, ONE_TOKENIZER, TWO_TOKENIZERS
from distill.losses.names import addresses_in
from distill.losses.own import import_named
from distill.losses.weights import parse_losses
from distill.student.arguments import StudentArguments
from distill.training.config import CachedTeacherConfig
from distill.training.flag_file import read_flag_file
from distill.training.flag_names import unknown
from distill.training.presets import PRESETS, flags_of
from logitstore.console.entry import with_underscores
from logitstore.errors import InputError


def parse(argv: Sequence[str]) -> tuple[CachedTeacherConfig, StudentArguments]:
    """Parse flags, and the file after `--config`, into the configuration of a run.

    Raises:
        InputError: For an unknown flag or key (names the nearest) and for a bad value.
    """
    files = ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    files.add_argument("--preset")
    chosen, flags = files.parse_known_args([with_underscores(word) for word in argv])
    flags = _gathered(flags)
    parser = _Parser()
    from_file = parser.flags_of(Path(chosen.config)) if chosen.config else []
    in_file, from_file = files.parse_known_args(from_file)
    preset = chosen.preset or in_file.preset
    _import_own(flags, from_file, chosen.config)
    first = _without_overridden(flags_of(preset), [*from_file, *flags]) if preset else []
    try:
        # The last of two flags wins, so the preset comes first, then the file.
        parsed: tuple[Any, ...] = parser.parse_args_into_dataclasses(
            [*first, *from_file, *flags], return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except (ValueError, ImportError, OSError) as error:  # from TrainingArguments: already clear
        message = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{message}. See `distill train --help`.") from error
    config, student, *_, others = parsed
    if others:
        raise InputError(unknown(str(others[0]), parser.known_keys(), "flag"), kind="usage")
    return config, student


def _gathered(flags: Sequence[str]) -> list[str]:
    """Write a flag that may be given several times once, with all its values, at the end."""
    kept, found = list[str](), dict[str, list[str]]()
    current: str | None = None
    for word in flags:
        name, has_value, value = word.partition("=")
        if word.startswith("--"):
            current = name[2:] if name[2:] in _REPEATED else None
            if current is not None:
                found.setdefault(current, []).extend([value] if has_value else [])
                current = None if has_value else current
                continue
        if current is None:
            kept.append(word)
        else:
            found[current].append(word)
    for name, values in found.items():
        kept += [f"--{name}", *values]
    return kept


def _import_own(flags: Sequence[str], from_file: Sequence[str], path: str) -> None:
    """Import the losses that the command line names; a file may be from others, and names none.

    Raises:
        InputError: The file names one, or one cannot be imported.
    """
    of_loss = ArgumentParser(add_help=False, allow_abbrev=False)
    of_loss.add_argument("--loss", nargs="?")
    typed, in_file = (of_loss.parse_known_args(list(each))[0].loss for each in (flags, from_file))
    if typed is not None:
        import_named(typed)
    elif in_file is not None and (named := next(addresses_in(in_file), None)):
        raise InputError(
            f"--config {path}: loss names {named}, a module to import and so to run, which a file "
            f"cannot ask for. Give --loss {in_file} on the command line; it wins over the file.",
            kind="own-loss",
        )


def _without_overridden(preset: list[str], given: Sequence[str]) -> list[str]:
    """Drop from a preset its schedule if another is given, and what another loss cannot use."""
    names = {flag.split("=")[0].lstrip("-") for flag in given if flag[:2] == "--"}
    schedules = {"one_cycle", "lr_scheduler_type", "warmup_steps"}
    if "one_cycle" in names or (
        names & schedules and any(flag.startswith("--one_cycle") for flag in preset)
    ):
        names |= schedules
    if "loss" in names:
        losses = _losses_of(given)
        read = {option.name for name in losses for option in find(name).options}
        names |= all_options().keys() - read
        names |= set() if losses else {"uncovered"}
    return [flag for flag in preset if flag.split("=")[0][2:] not in names]


def _losses_of(given: Sequence[str]) -> dict[str, float]:
    """Parse the losses that the last `--loss` names."""
    flags = [part for flag in given for part in flag.split("=", 1)]
    last = len(flags) - 1 - flags[::-1].index("--loss")
    named = flags[last + 1 : last + 2] or ["ce"]
    if named == [AUTO]:
        return dict.fromkeys((ONE_TOKENIZER, TWO_TOKENIZERS), 1.0)
    return parse_losses(named[0])


#: Flags that may be given several times.
_REPEATED = ("store", "eval_store")


class _Parser(HfArgumentParser):
    """An HfArgumentParser that raises instead of exiting, and reads a YAML file as flags."""

    def __init__(self) -> None:
        super().__init__(
            (CachedTeacherConfig, StudentArguments),  # type: ignore[arg-type]  # upstream NewType
            prog="distill train",
            allow_abbrev=False,
            add_help=False,  # see help.py
        )
        self.add_argument("--preset", choices=list(PRESETS))
        self.add_argument("--config")
        self.add_argument("--json", action="store_true")

    def add_argument(self, *names: str, **more: Any) -> Any:
        """Declare a flag with underscores alone: `parse` converts the spelling with hyphens."""
        if names[0].removeprefix("--") in _REPEATED:
            more["nargs"] = "+"
        spelt = [name for name in names if with_underscores(name) == name]
        more.pop("setting", None)  # what the help says of it
        return super().add_argument(*spelt, **more)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See `distill train --help`.", kind="usage")

    def known_keys(self) -> list[str]:
        return [action.dest for action in self._actions]

    def flags_of(self, path: Path) -> list[str]:
        """Turn a file's keys into flags, so that both go through the same types and checks."""
        loaded = read_flag_file(path)
        known = self.known_keys()
        flags: list[str] = []
        for key, value in loaded.items():
            name = with_underscores(f"--{key}").removeprefix("--")
            if name not in known or name in ("config", "help", "json"):
                raise InputError(f"--config {path}: " + unknown(str(key), known, "key"))
            choices = next((a.choices for a in self._actions if a.dest == name), None)
            flags += _as_flags(name, _as_written(value, choices))
        return flags


#: What YAML takes for a truth value, though it may be the name of a choice: `save_strategy: no`.
_SPELLINGS = {True: ("true", "yes", "on"), False: ("false", "no", "off")}


def _as_written(value: object, choices: Iterable[object] | None) -> object:
    """Turn YAML's truth value back into the choice that was written, if it is one."""
    if not isinstance(value, bool) or choices is None:
        return value
    named = {str(getattr(choice, "value", choice)): choice for choice in choices}
    return next((word for word in _SPELLINGS[value] if word in named), value)


def _as_flags(name: str, value: object) -> list[str]:
    """Write `--name=value`, a form that is also right for values that look like flags."""
    if value is None:  # YAML's null: the default
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}"]
