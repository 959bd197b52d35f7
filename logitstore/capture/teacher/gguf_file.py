"""Find the GGUF file of a teacher, the format of llama.cpp: weights, and mostly a tokenizer.

`transformers` reads the weights, and unpacks them where no kernel computes with them as they are.
What is quantised has another distribution than what it was made of, so the spec says that it is
(`teacher.quantization`), and the store's provenance which file it was.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from logitstore.errors import InputError

#: What a store's spec has as `teacher.quantization`.
QUANTIZATION = {"quant_method": "gguf"}
_MAGIC = b"GGUF"
_BLOCK_BYTES = 1 << 20


def check_gguf(teacher: str, name: str | None) -> None:
    """Reject a file that is not there or is no GGUF file, before `transformers` is asked for it.

    Args:
        teacher: Folder or hub id.
        name: The file in it that was asked for; None: none was.

    Raises:
        InputError: It is not there, or something else; or a file of this kind is the teacher.
    """
    folder = Path(teacher)
    if name is None:
        if folder.is_file() and _begins_as_gguf(folder):
            raise InputError(
                f"{teacher}: is a GGUF file, and a teacher is a folder. Give {folder.parent} "
                f"--gguf-file {folder.name}."
            )
        return
    if not folder.is_dir():
        return  # of a hub, whose files are not here yet
    path = folder / name
    if not path.is_file():
        there = sorted(p.name for p in folder.glob("*.gguf"))
        found = ", ".join(there[:5]) or "none"
        step = "Name one of them." if there else "Give the folder that has it."
        raise InputError(
            f"--gguf-file {name}: there is no such file in {teacher}; GGUF files there: {found}. "
            f"{step}"
        )
    if not _begins_as_gguf(path):
        raise InputError(
            f"--gguf-file {name}: {path} is no GGUF file: its first bytes are not GGUF. Name "
            "another, or download it again."
        )


def tokenizer_source(teacher: str, name: str | None) -> str | None:
    """Tell where a tokenizer is read from: the GGUF file, or None for files of its own.

    The file's is a copy in another form, so files beside it are preferred.
    """
    return None if (Path(teacher) / "tokenizer.json").is_file() else name


def about_file(teacher: str, name: str) -> dict[str, Any]:
    """Describe a GGUF file for a store's provenance: its name, size and SHA-256, if it is here."""
    path = Path(teacher) / name
    if not path.is_file():
        return {"file": name}
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return {"file": name, "file_bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _begins_as_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as e:
        raise InputError(
            f"{path}: cannot be read ({e.strerror}). Fix its permissions, or copy it to where you "
            "may read it."
        ) from e
