"""A student folder's `results.json`: its run as one JSON object, which evaluations complete."""

import json
from pathlib import Path
from typing import Any

from logitstore.errors import InputError, in_a_line
from logitstore.storage import commit
from logitstore.storage.files import read_file
from logitstore.storage.folder import LocalPath

RESULTS_FILE = "results.json"
_MAX_BYTES = 8 * 1024 * 1024

RunObject = dict[str, Any]


def write_results(folder: Path, run: RunObject) -> None:
    """Write the run object whole or not at all: a reader never meets half a file.

    Raises:
        OSError: It cannot be written; what was there before is still there.
    """
    commit.write_whole(folder / RESULTS_FILE, (json.dumps(run, indent=1) + "\n").encode())


def read_results(folder: Path, *, writable: bool = True) -> RunObject | None:
    """Read the run object of a student folder; None where `distill train` wrote none.

    Args:
        folder: Of the student.
        writable: Whether it is to be completed.

    Raises:
        InputError: There is one, but it is damaged or could not be completed.
    """
    path = folder / RESULTS_FILE
    try:
        run = json.loads(read_file(path, _MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: the run object of this student cannot be read ({in_a_line(error)}). Restore "
            "it from a copy, or delete it to evaluate without it."
        ) from error
    if not isinstance(run, dict) or "name" not in run:
        return None
    if writable:
        check_writable(folder, "MODEL")
    return run


def check_writable(folder: Path, option: str) -> None:
    """Reject a folder that cannot be made or written to, before there is anything to write.

    Args:
        folder: The folder, which need not be there.
        option: What names it on the command line, for the message.

    Raises:
        MismatchError, StorageError: Names the part of its path that stands in the way.
    """
    LocalPath(folder).try_writing(option, commits=False)
