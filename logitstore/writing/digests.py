"""Compute the digests of a store's small files, as its spec and its seal have them."""

import hashlib
from collections.abc import Mapping

from logitstore.errors import InputError
from logitstore.storage.paths import StorePath


def sha256_of(data: bytes) -> str:
    """Compute the SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digests_of(folder: StorePath) -> dict[str, str]:
    """Compute the SHA-256 of each file of a folder; none if it is not there."""
    try:
        files = [folder / name for name in folder.names()]
    except FileNotFoundError:
        return {}
    return {file.name: file.sha256() for file in files if file.is_file()}


def tokenizer_digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Compute the SHA-256 of each tokenizer file, as the spec records them.

    Raises:
        InputError: There are no files.
    """
    if not files:
        raise InputError("the teacher's tokenizer saved no files. Use a fast tokenizer.")
    return {name: sha256_of(data) for name, data in sorted(files.items())}
