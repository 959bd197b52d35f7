"""Why a model or tokenizer does not load, in the user's terms."""

import json
from pathlib import Path

from logitstore.errors import in_a_line


def why_not_loaded(name: str, error: Exception) -> str:
    """The reason, in a line; of a folder, with the file that is at fault where one can be found.

    `transformers` takes a path to nothing for the id of a model on the hub, and names no file where
    one is damaged.

    Args:
        name: Hub id or folder, as the user gave it.
        error: What `transformers` raised.
    """
    folder = Path(name)
    if folder.is_file():
        return "it is a file, not a folder"
    if not folder.is_dir():
        is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
        return "there is no such folder" if is_path else in_a_line(error)
    return _damage(folder) or in_a_line(error)


def _damage(folder: Path) -> str | None:
    """The first file of a model folder that cannot be read to its end."""
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(path, "pt"):
                    pass
        except Exception as error:  # safetensors has a class of its own
            return f"{path.name} is damaged: {in_a_line(error)}"
    return None
