"""Running a command line: whatever goes wrong on purpose is one message and an exit status.

stdout has the data alone; the message goes to stderr, begins with `error: ` and says what to do.
"""

import os
import sys
from typing import Any, NoReturn

import typer

from logitstore.errors import LogitStoreError

#: click's class for a command line that cannot be understood; typer may bring its own click along.
_UsageError: Any = typer.BadParameter.__base__
_INTERRUPTED = 130


def run(app: typer.Typer, name: str) -> NoReturn:
    """Do what `sys.argv` says, then exit: 0, what the command chose, or 2 for a bad request.

    Args:
        app: The commands.
        name: What the program is called.
    """
    try:
        status = app(standalone_mode=False, prog_name=name)
    except LogitStoreError as error:
        _refuse(str(error))
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no command at all: its help
            error.show()
            sys.exit(error.exit_code)
        path = error.ctx.command_path if error.ctx is not None else name
        _refuse(f"{error.format_message().rstrip('.')}. See `{path} --help`.")
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(status or 0)


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
