"""Compute what identifies a model, wherever it lies: names are reused, and files are rewritten.

A hub model is identified by its commit, a folder by its configuration and weights: whole files up
to 64 MiB, beyond that the size and 1,024 evenly spaced blocks, so that a 140 GB teacher is told
apart from its fine-tune in a second, on every resume. (A tokenizer's fingerprint is in
`text/tokenizer.py`, a dataset's in `rows/dataset.py`, beside the code that knows their structure.)
"""

import hashlib
from pathlib import Path

from logitstore.errors import InputError

_WHOLE_BYTES = 64 * 1024 * 1024
_BLOCKS = 1024
_BLOCK_BYTES = _WHOLE_BYTES // _BLOCKS
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")


def fingerprint_commit(commit: str, file: str | None = None) -> str:
    """Compute the fingerprint of a hub model at one commit, or of one of its files."""
    named = "" if file is None else f":{file}"
    return hashlib.sha256(f"commit:{commit}{named}".encode()).hexdigest()


def fingerprint_folder(folder: Path, file: str | None = None) -> str:
    """Compute the fingerprint of a model folder: names, sizes and bytes of config and weights.

    Args:
        folder: The folder.
        file: The file in it that holds configuration and weights; None: whatever weights it has.

    Raises:
        InputError: The folder holds no weights.
    """
    if file is not None:
        digest = hashlib.sha256(f"{(folder / file).stat().st_size}:".encode())
        _update_sampled(digest, folder / file)
        return digest.hexdigest()
    weights = _weights(folder)
    if not weights:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{folder}: no model weights here (*.safetensors or *.bin), found {names}. Give the "
            "folder that `save_pretrained` wrote, or a hub id."
        )
    digest = hashlib.sha256()
    configs = [folder / name for name in _CONFIGS if (folder / name).exists()]
    for path in configs + weights:
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        _update_sampled(digest, path)
    return digest.hexdigest()


def has_weights(folder: Path) -> bool:
    """Tell whether a folder holds weights."""
    return bool(_weights(folder))


def _weights(folder: Path) -> list[Path]:
    return sorted({p for pattern in _WEIGHTS for p in folder.glob(pattern)})


def _update_sampled(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as f:
        if size <= _WHOLE_BYTES:
            digest.update(f.read())
            return
        for i in range(_BLOCKS):
            f.seek(i * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
            digest.update(f.read(_BLOCK_BYTES))
