"""Put a trained student on the Hugging Face Hub (`distill push`), with its model card.

Only what a student is and what says how it was made goes: no checkpoints, no optimizer, and none
of the pickled files that a run leaves beside it. The configuration goes last, with the card:
without it nothing loads the rest.
"""

from os import PathLike
from pathlib import Path
from typing import Any

from distill.report.model_card import CARD_FILE
from logitstore.errors import InputError
from logitstore.moving.hub.repository import Repository
from logitstore.storage.paths import local, local_path

_CONFIGS = ("config.json", "adapter_config.json")
_KINDS = (".json", ".jinja", ".safetensors", ".model", ".txt", ".md", ".png", ".svg")


def push(student: str | PathLike[str], to: str, *, public: bool = False) -> dict[str, Any]:
    """Upload a student, or go on with an upload that was stopped.

    Args:
        student: The folder that `distill train` wrote.
        to: ``hf://OWNER/NAME``; made if it is not there.
        public: Whether a new repository can be seen by everybody.

    Returns:
        The address, and how many files and bytes were there to upload.

    Raises:
        InputError: `to` is no such address, or the folder has no student.
        StorageError: The hub refuses or fails.
    """
    there = Repository.of(to, "model")
    folder = local(local_path(student, "a student to push", "STUDENT"))
    files = _files(folder)
    ends = [name for name in (*_CONFIGS, CARD_FILE) if name in files]
    last: dict[str, Path | bytes] = {name: files[name] for name in ends}
    there.fill({n: path for n, path in files.items() if n not in last}, last, public=public)
    size = sum(path.stat().st_size for path in files.values())
    return {"path": str(there.path), "files": len(files), "file_bytes": size}


def _files(folder: Path) -> dict[str, Path]:
    """List the files of a student by name.

    Raises:
        InputError: There is no student.
    """
    found = {
        path.name: path
        for path in sorted(folder.iterdir() if folder.is_dir() else ())
        if path.suffix in _KINDS and path.is_file() and not path.name.startswith(".")
    }
    if not any(name in found for name in _CONFIGS) or not any(
        name.endswith(".safetensors") for name in found
    ):
        raise InputError(
            f"{folder}: holds no student: {_CONFIGS[0]} (or {_CONFIGS[1]}) and weights in "
            "*.safetensors were expected. Give the folder that `distill train` wrote."
        )
    return found
