"""A setting described once: a field of a dataclass, with its help beside it.

    top_k: int = setting(64, KEPT, "Entries to keep per record.")

Everything else that names the setting is derived from the field: the option of the command line
(`logitstore.console.options.option_of`), the signature and docstring of the Python function
(`with_settings`), and what a store records (`is_recorded`). So adding a setting is adding a field.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import wraps
from typing import Any, TypeVar

from logitstore.console.argument_types import check_arguments

_KEY = "setting"
_DOC_WIDTH = 96  # of an argument's lines, so that they end in column 100
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class About:
    """What a user is told about a setting, and where it applies.

    Attributes:
        help: Whole sentences. `` `name` `` of another setting becomes its flag on a command line.
        panel: Heading of its options in `--help`.
        flag: The option, where it is not the name with hyphens.
        switch_help: Help of the flag that switches a setting off that is on by default.
        metavar: Placeholder of its value in `--help`.
        unset: What applies if it is None, for people; else the default value is shown.
        is_recorded: Whether it decides what a store holds, so that the store records it.
        is_estimated: Whether a preview of the work takes it, too.
        is_rare: Whether it is seldom used, so that only `--help-all` lists it.
    """

    help: str
    panel: str
    flag: str | None = None
    switch_help: str | None = None
    metavar: str | None = None
    unset: str | None = None
    is_recorded: bool = True
    is_estimated: bool = True
    is_rare: bool = False


def setting(default: Any, panel: str, help: str, **more: Any) -> Any:
    """Declare a setting as a field of a dataclass; `more` as the attributes of `About`."""
    about = About(help=help, panel=panel, **more)
    return field(default=default, metadata={_KEY: about})


def described(settings: type) -> list["Field[Any]"]:
    """List the fields of a dataclass that are settings, in order."""
    return [each for each in fields(settings) if _KEY in each.metadata]


def about(each: "Field[Any]") -> About:
    """Read what a field says about its setting."""
    found = each.metadata[_KEY]
    assert isinstance(found, About)
    return found


def flag_of(each: "Field[Any]") -> str:
    """Name the option of a setting on the command line: `--top-k`.

    A setting that is on by default has the option that switches it off: `--no-ids`.
    """
    chosen = about(each).flag
    off = "no-" if each.default is True else ""
    return chosen or f"--{off}{each.name.replace('_', '-')}"


def help_of(each: "Field[Any]", settings: type) -> str:
    """Write the help of a setting for a command line, other settings named by their flags."""
    flags = {f.name: flag_of(f) for f in described(settings)}
    said = about(each)
    text = said.switch_help or said.help
    return re.sub(r"`(\w+)`", lambda m: flags.get(m[1], m[0]), text)


def with_settings(*settings: type) -> Callable[[_Function], _Function]:
    """Make a function that takes `**settings` show each of these, and hold arguments to it.

    What is shown is the signature and the docstring; arguments of a wrong type are an error.

    In the docstring the line that begins with `**settings:` is replaced by a line a setting.
    """

    def with_each(function: _Function) -> _Function:
        own = inspect.signature(function)
        signature = own.replace(parameters=[*_parameters(own, settings)])
        name = f"{function.__module__.removesuffix(f'.{function.__name__}')}.{function.__name__}"

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check_arguments(name, signature, function.__globals__, args, kwargs)
            return function(*args, **kwargs)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        if function.__doc__ is not None:  # python -OO drops it
            lines = function.__doc__.split("\n")
            checked.__doc__ = "\n".join(_with_arguments(lines, settings))
        return checked  # type: ignore[return-value]

    return with_each


def _parameters(own: inspect.Signature, settings: Sequence[type]) -> Iterator[inspect.Parameter]:
    """Yield the function's own parameters, the settings in the place of `**settings`."""
    kinds = inspect.Parameter
    mine = [p for p in own.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
    yield from (p for p in mine if p.kind is not kinds.KEYWORD_ONLY)
    for each in (f for kind in settings for f in described(kind)):
        yield kinds(each.name, kinds.KEYWORD_ONLY, default=each.default, annotation=each.type)
    yield from (p for p in mine if p.kind is kinds.KEYWORD_ONLY)


def _with_arguments(lines: list[str], settings: Sequence[type]) -> Iterator[str]:
    for line in lines:
        if not line.lstrip().startswith("**settings:"):
            yield line
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for each in (f for kind in settings for f in described(kind)):
            said = about(each)
            unset = f" Default: {said.unset}." if said.unset else ""
            yield from textwrap.wrap(
                f"{each.name}: {said.help}{unset}",
                _DOC_WIDTH,
                initial_indent=indent,
                subsequent_indent=f"{indent}    ",
                break_on_hyphens=False,
            )


def not_recorded(settings: type) -> frozenset[str]:
    """Name the settings of a machine and a run, which a store does not record."""
    return frozenset(f.name for f in described(settings) if not about(f).is_recorded)


def is_switch(each: "Field[Any]") -> bool:
    """Tell whether a setting is given without a value: on or off."""
    return isinstance(each.default, bool)
