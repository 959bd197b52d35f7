"""Set up and run a command line: an error raised on purpose is one message and an exit status.

stdout has the data alone. An error's message goes to stderr, begins with `error: ` and says what
to do. With `--json` stdout has one JSON object then, too:

    {"error": {"kind": "incomplete", "message": "my-store: holds 7 of 12 rows; …"}}
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, NoReturn

import typer

from logitstore.console.escaped import escaped_output
from logitstore.console.signals import Stopped
from logitstore.errors import LogitStoreError

#: click's class for a command line that cannot be understood; typer may bring its own click along.
_UsageError: Any = typer.BadParameter.__base__
_INTERRUPTED = 130

_ABOUT_ERRORS = (
    "An error is one line on stderr that says what to do, and exit status 2. With --json it is on "
    'stdout, too: {"error": {"kind": …, "message": …}}; a kind stays the same in later versions.'
)


def program(
    name: str, help: str, *, epilog: str = "", begin: Callable[[], None] = lambda: None
) -> typer.Typer:
    """Make a program without commands, with what both of ours have in common.

    `--version`, `-h`, and in the name of an option `_` means the same as `-`.

    Args:
        name: What it is called.
        help: What it does, one sentence.
        epilog: Text at the end of its help, before that about errors.
        begin: Called before a command runs.
    """
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # the other mode keeps the line ends of a docstring
        context_settings={
            "help_option_names": ["-h", "--help"],
            "token_normalize_func": with_hyphens,
        },
        help=help,
        epilog=f"{epilog}\n\n{_ABOUT_ERRORS}".strip(),
    )

    def show_version(is_asked: bool) -> None:
        if is_asked:
            from logitstore import __version__

            typer.echo(f"{name} {__version__}")
            raise typer.Exit

    @app.callback()
    def before_a_command(
        version: Annotated[
            bool,
            typer.Option(
                "--version", is_eager=True, callback=show_version, help="Print the version."
            ),
        ] = False,
    ) -> None:
        begin()

    return app


def with_hyphens(option: str) -> str:
    """Spell the name of an option as ours are declared: `_` means the same as `-`."""
    return option.replace("_", "-")


def with_underscores(word: str) -> str:
    """Spell the name of an option as TrainingArguments declares its own; a value stays.

    `--learning-rate=1e-4` becomes `--learning_rate=1e-4`; a word that is no option stays, too.
    """
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


class _AskedToStop(Exception):
    """A `Stopped`, past click, which would make of any KeyboardInterrupt the same exit."""

    def __init__(self, stopped: Stopped) -> None:
        super().__init__(stopped)
        self.stopped = stopped


@contextmanager
def stoppable() -> Iterator[None]:
    """End the program with the message and the status of a `Stopped` that is raised inside."""
    try:
        yield
    except Stopped as stopped:
        raise _AskedToStop(stopped) from None


def run(app: typer.Typer, name: str) -> NoReturn:
    """Do what `sys.argv` says, then exit: 0, what the command chose, or 2 for a bad request.

    What it writes is escaped for a terminal; a help text is our own, and has colours.

    Args:
        app: The commands.
        name: What the program is called.
    """
    asks_help = {"-h", "--help", "--help-all", "--help_all"}
    is_help = not asks_help.isdisjoint(sys.argv[1:]) or len(sys.argv) == 1
    with nullcontext() if is_help else escaped_output():
        _run(app, name)


def _run(app: typer.Typer, name: str) -> NoReturn:
    try:
        status = app(standalone_mode=False, prog_name=name)
    except LogitStoreError as error:
        _fail(str(error), 2, **error.facts())
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no command at all: its help
            error.show()
            sys.exit(error.exit_code)
        path = error.ctx.command_path if error.ctx is not None else name
        _fail(f"{error.format_message().rstrip('.')}. See `{path} --help`.", 2, kind="usage")
    except MemoryError as error:
        why = f" ({error})" if str(error) else ""
        step = "Free memory, raise the limit (`ulimit -v`), or use another machine"
        _fail(f"there is not enough memory{why}. {step}.", 2, kind="out-of-memory")
    except _AskedToStop as asked:
        _fail(str(asked.stopped), asked.stopped.exit_status, begins="", kind="stopped")
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(status or 0)


def _fail(message: str, status: int, *, begins: str = "error: ", **facts: Any) -> NoReturn:
    print(f"{begins}{message}", file=sys.stderr)
    if "--json" in sys.argv[1:]:
        print(json.dumps({"error": {**facts, "message": message}}))
    sys.exit(status)
