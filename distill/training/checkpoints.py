"""Find the checkpoint that a run goes on from: the newest one that was saved whole."""

from pathlib import Path

from distill.training.preflight import ORIGIN_FILE, check_whole
from logitstore.errors import InputError

_PREFIX = "checkpoint-"
_STATE_FILE = "trainer_state.json"  # the last that Trainer writes


def newest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """Find the newest whole checkpoint of an output folder.

    A process that is killed while it saves one leaves a part of it.

    Returns:
        The checkpoint, or None; and the newer ones, of which only a part is there, newest first.
    """
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name[len(_PREFIX) :].isdecimal()]
    parts: list[Path] = []
    for path in sorted(found, key=lambda path: -int(path.name[len(_PREFIX) :])):
        if _is_whole(path):
            return path, parts
        parts.append(path)
    return None, parts


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in (_STATE_FILE, ORIGIN_FILE)):
        return False
    try:
        check_whole(checkpoint)
    except InputError:
        return False
    return True
