"""A setting is described once: whatever names it is derived from its field."""

import inspect
import json
import pydoc
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any

import pytest
import typer

import logitstore
from logitstore.capture.settings import NOT_RECORDED, PANELS, CaptureSettings
from logitstore.cli.app import app
from logitstore.console.options import option_of, settings_from, with_options_of, words_of
from logitstore.console.settings import about, flag_of, help_of, setting, with_settings

SETTINGS = fields(CaptureSettings)
ids = [each.name for each in SETTINGS]


def options_of(command: str) -> dict[str, Any]:
    made: Any = typer.main.get_command(app)
    return {option.name: option for option in made.commands[command].params}


@pytest.mark.parametrize("each", SETTINGS, ids=ids)
def test_the_signature_shows_every_setting_with_its_default(each: "Field[Any]") -> None:
    shown = inspect.signature(logitstore.capture).parameters[each.name]
    assert (shown.default, shown.annotation) == (each.default, each.type)
    assert shown.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("each", SETTINGS, ids=ids)
def test_help_in_python_tells_what_the_command_line_tells(each: "Field[Any]") -> None:
    text = " ".join(pydoc.plaintext.document(logitstore.capture).split())
    assert f" {each.name}: {about(each).help}" in text
    option = options_of("capture")[each.name]
    assert option.opts == [flag_of(each)]
    whole = help_of(each, CaptureSettings)
    assert whole.startswith(option.help.removesuffix(" Repeatable.").removesuffix("."))
    (made,) = option_of(each, CaptureSettings).annotation.__metadata__  # as `--help-all` has it
    assert made.help.startswith(whole)
    assert option.rich_help_panel == about(each).panel


@pytest.mark.parametrize("each", SETTINGS, ids=ids)
def test_an_estimate_takes_each_setting_but_those_of_doing_it(each: "Field[Any]") -> None:
    assert (each.name in options_of("estimate")) == about(each).is_estimated
    assert about(each).is_estimated == (each.name not in {"claim", "max_lost", "self_test"})


def test_what_a_store_records_are_the_settings_that_decide_it() -> None:
    recorded = CaptureSettings().recorded()
    newer = {
        "gguf_file",
        "hidden",
        "hidden_dtype",
        "hidden_context",
        "with_lm_head",
    }  # named by a store that uses it, so that others keep their bytes
    assert set(recorded) | NOT_RECORDED | newer == set(ids)
    assert not newer & set(recorded)
    with_all = CaptureSettings(
        gguf_file="m.gguf",
        hidden=["last"],
        hidden_dtype="fp8",
        hidden_context=True,
        with_lm_head=True,
    )
    assert CaptureSettings.from_recorded(with_all.recorded()) == with_all
    assert set(with_all.recorded()) | NOT_RECORDED == set(ids)
    assert CaptureSettings.from_recorded(recorded) == CaptureSettings()
    assert "trust_remote_code" in NOT_RECORDED, "a file must never decide this"


def test_words_of_settings_are_read_back_as_these_settings() -> None:
    given = CaptureSettings(
        top_k=8,
        max_tail=0.05,
        ids=False,
        temperatures=(1.0, 2.5),
        draws=3,
        stop=("END OF", "it's"),
        chat_template_kwargs={"enable_thinking": False},
        tokens_per_batch="auto",
        claim=True,
    )
    words = words_of(given)
    assert words_of(CaptureSettings()) == []
    assert "--no-ids" in words
    made: Any = typer.main.get_command(app)
    command = made.commands["capture"]
    context = command.make_context("capture", ["t", "d", "--out", "s", *words])
    read = CaptureSettings(**settings_from(CaptureSettings, context.params))
    kwargs = json.loads(read.chat_template_kwargs)  # type: ignore[arg-type]
    assert replace(read, chat_template_kwargs=kwargs) == given


def test_options_that_are_not_given_are_the_defaults() -> None:
    given = {name: option.default for name, option in options_of("capture").items()}
    assert settings_from(CaptureSettings, given) == vars(CaptureSettings())


@dataclass(frozen=True, kw_only=True)
class More(CaptureSettings):
    """A capture with settings that nobody has heard of."""

    warp: float = setting(9.5, PANELS[0], "How fast, beside `top_k`.")
    shields: bool = setting(True, PANELS[1], "Keep them up.", switch_help="Lower them.")
    crew: Sequence[str] = setting((), PANELS[1], "Who flies.")
    course: str | Mapping[str, Any] | None = setting(None, PANELS[1], "Where to.", unset="home")
    decks: int | str | None = setting(None, PANELS[1], "How many, or all.")


def flown(*words: str) -> tuple[More, str]:
    """What a command line sets, and its help."""
    found: list[More] = []
    small = typer.Typer()

    @small.command()
    @with_options_of(More, PANELS, leave_out=("claim",))
    def fly(**values: Any) -> None:
        found.append(More(**settings_from(More, values)))

    command: Any = typer.main.get_command(small)
    command(list(words), standalone_mode=False)
    return found[0], command.get_help(command.make_context("fly", []))


def test_adding_a_setting_is_adding_a_field() -> None:
    words = ("--warp", "7", "--no-shields", "--crew", "a", "--crew", "b", "--decks", "12")
    settings, _ = flown(*words, "--course", '{"x": 1}', "--top-k", "3", "--no-ids")
    assert (settings.warp, settings.shields, settings.crew) == (7.0, False, ("a", "b"))
    assert (settings.course, settings.decks) == ('{"x": 1}', 12)
    assert (settings.top_k, settings.ids) == (3, False)
    assert flown()[0] == More()
    assert flown("--decks", "all")[0].decks == "all"

    @with_settings(More)
    def fly(teacher: str, *, ranks: int = 1, **settings: Any) -> None:
        """Fly.

        Args:
            teacher: Who.
            **settings: All.
            ranks: How many.
        """

    shown = inspect.signature(fly).parameters
    assert list(shown) == ["teacher", *(f.name for f in fields(More)), "ranks"]
    lines = inspect.getdoc(fly)
    assert lines is not None
    assert "    warp: How fast, beside `top_k`.\n" in lines
    assert "    course: Where to. Default: home.\n" in lines
    assert "**settings" not in lines


def test_help_on_the_command_line_names_flags() -> None:
    warp = next(f for f in fields(More) if f.name == "warp")
    assert help_of(warp, More) == "How fast, beside --top-k."
    option = option_of(warp, More)
    assert option.default == 9.5


def test_a_setting_that_is_not_known_is_named() -> None:
    with pytest.raises(TypeError, match="top_kk"):
        logitstore.capture("teacher", "data", out="s", top_kk=3)


def test_the_signature_is_there_without_torch() -> None:
    code = (
        "import inspect, sys, logitstore; inspect.signature(logitstore.capture); "
        "assert logitstore.capture.capture.__doc__; "
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_help_text_is_whole_sentences() -> None:
    for each in SETTINGS:
        assert re.match(r"[A-Z]", about(each).help), each.name
        assert about(each).help.endswith((".", "…")), each.name
