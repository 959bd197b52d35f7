"""Arguments and options that commands share, and options derived from described settings."""

import inspect
import json
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer

from logitstore.console.settings import about, described, flag_of, help_of, is_switch

StoreArg = Annotated[
    str, typer.Argument(help="The store: a folder, or a URL such as s3://bucket/name.")
]
OutOpt = Annotated[
    str, typer.Option(help="Store to make or resume: a folder, or a URL.", metavar="STORE")
]
JsonOpt = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout; an error, too.")
]
PartialOpt = Annotated[
    bool, typer.Option("--allow-partial", help="Also read a store that is not finished.")
]

#: Characters of a sentence of help that is cut at its colon.
_LONG = 160
_Command = TypeVar("_Command", bound=Callable[..., None])


def print_facts(
    found: dict[str, Any], as_text: Callable[[dict[str, Any]], str], as_json: bool
) -> None:
    """Print facts to stdout, as one JSON object or for people."""
    typer.echo(json.dumps(found) if as_json else as_text(found))


def with_options_of(
    settings: type | tuple[type, ...],
    panels: Sequence[str],
    leave_out: Collection[str] = (),
    *,
    brief: bool = False,
) -> Callable[[_Command], _Command]:
    """Give a command that takes `**values` an option for each setting.

    Args:
        settings: Their dataclass, or several.
        panels: Headings of the help, in order.
        leave_out: Names of those without an option here.
        brief: Whether `--help` is short: of each setting the first sentence, and none of those that
            are seldom used; `--help-all` then has the rest.
    """

    def with_options(command: _Command) -> _Command:
        own = list(inspect.signature(command).parameters.values())
        mine = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        kinds = settings if isinstance(settings, tuple) else (settings,)
        given = [(f, k) for k in kinds for f in described(k) if f.name not in leave_out]
        given.sort(key=lambda each: panels.index(about(each[0]).panel))
        derived = [option_of(f, kind, brief=brief) for f, kind in given]
        if brief:
            mine.append(_help_all({f.name: _text_of(f, kind) for f, kind in given}))
        # Typer calls with keywords, so their order is that of the help.
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*mine, *derived]]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return with_options


def option_of(each: "Field[Any]", settings: type, *, brief: bool = False) -> inspect.Parameter:
    """Make the parameter of a command that Typer reads as the option of a setting.

    Args:
        each: The setting.
        settings: The dataclass that it is of.
        brief: Whether its help is one sentence, or nothing if it is seldom used.
    """
    said = about(each)
    kind = bool if is_switch(each) else _option_type(each.type)
    is_repeatable = get_origin(kind) is list
    default = False if is_switch(each) else None if is_repeatable else each.default
    option = typer.Option(
        flag_of(each),
        help=_first_sentence(_text_of(each, settings)) if brief else _text_of(each, settings),
        hidden=brief and said.is_rare,
        rich_help_panel=said.panel,
        metavar=said.metavar,
        show_default=said.unset or not is_repeatable,
    )
    optional = kind if default is not None else kind | None
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[optional, option],
    )


def _text_of(each: "Field[Any]", settings: type) -> str:
    is_repeatable = not is_switch(each) and get_origin(_option_type(each.type)) is list
    return help_of(each, settings) + (" Repeatable." if is_repeatable else "")


def _first_sentence(text: str) -> str:
    """Take a help up to the end of its first sentence, or to its first colon if that is long."""
    sentence = re.split(r"(?<=[.])\s+(?=[A-Z`])", text)[0]
    if len(sentence) > _LONG and ": " in sentence:
        return f"{sentence.split(': ')[0]}."
    return sentence


def _help_all(texts: Mapping[str, str]) -> inspect.Parameter:
    """Make the option that lists every option of a command, each with all of its help."""

    def show(context: typer.Context, is_asked: bool) -> None:
        if is_asked:
            for option in context.command.params:
                option.hidden = False  # type: ignore[attr-defined]  # of options
                option.help = texts.get(str(option.name), getattr(option, "help", None))  # type: ignore[attr-defined]
            typer.echo(context.get_help())
            raise typer.Exit

    option = typer.Option(
        "--help-all",
        is_eager=True,
        callback=show,
        help="Show all options, and all that is to know of each.",
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter("help_all", kind, default=False, annotation=Annotated[bool, option])


def _option_type(annotation: Any) -> Any:
    """Choose what an option of a setting is read as: a mapping is given as text, as JSON."""
    union = get_origin(annotation) in (Union, types.UnionType)
    kinds = get_args(annotation) if union else (annotation,)
    kinds = tuple(k for k in kinds if k is not type(None) and get_origin(k) is not Mapping)
    if get_origin(kinds[0]) is Sequence:
        return list[get_args(kinds[0])[0]]  # type: ignore[misc]
    return str if str in kinds else kinds[0]


def settings_from(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the values of options back to settings, by name."""
    chosen = (f for f in described(settings) if f.name in values)
    return {each.name: _setting_of(each, values[each.name]) for each in chosen}


def words_of(settings: Any) -> list[str]:
    """Write settings as the options that give them: the inverse of `settings_from`.

    Args:
        settings: An instance of a dataclass of settings; those left as they are get no option.
    """
    words: list[str] = []
    for each in described(type(settings)):
        value = getattr(settings, each.name)
        if value == each.default:
            continue
        flag = flag_of(each)
        if is_switch(each):
            words.append(flag)
        elif isinstance(each.default, tuple):
            words += [word for one in value for word in (flag, str(one))]
        else:
            words += [flag, json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return words


def _setting_of(each: "Field[Any]", value: Any) -> Any:
    if is_switch(each):
        return value != each.default  # the flag of one that is on by default switches it off
    if isinstance(each.default, tuple):
        return tuple(value or ())
    if isinstance(value, str) and int in get_args(each.type):
        return _number_or_word(value)
    return value


def _number_or_word(given: str) -> int | str:
    try:
        return int(given)
    except ValueError:
        return given  # rejected later, unless it is a word that the setting knows
