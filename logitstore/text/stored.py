"""Read and write the tokenizer that a store keeps, and hold it to its fingerprint.

The digests of a store's tokenizer files say that they are the files that were stored. That they are
still read as the tokenizer that they were made from, they cannot say: a class of `transformers` may
rebuild what it saved in another way (Llama 2's `legacy` is not saved), and so may another version.
So `tokenizer.json` is read to the letter first, the fingerprint is compared wherever a tokenizer
comes from a store, and what makes a store tries that beforehand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from logitstore.errors import InputError, MismatchError
from logitstore.models.loading import (
    check_vocabulary,
    load_or_explain,
    load_tokenizer,
    saved_files,
)
from logitstore.storage.files import file_sha256
from logitstore.text.fingerprint import fingerprint
from logitstore.text.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Tokenizers that were read, by what they were read from; one of 150,000 tokens takes seconds.
_kept: dict[tuple[object, ...], ByteTokenizer] = {}
_MOST_KEPT = 2
_AGAIN = "Copy the store again, or capture with a teacher whose tokenizer transformers can load."


class Stored(NamedTuple):
    """A tokenizer as a store keeps it.

    Attributes:
        tokenizer: As transformers reads it, with its chat template.
        by_bytes: The same, with the bytes of its tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    by_bytes: ByteTokenizer


def stored_tokenizer(folder: Path, expected: str, where: object) -> Stored:
    """Load a tokenizer from the files that a store keeps of it.

    Args:
        folder: A folder with these files alone, which were compared with their digests.
        expected: The fingerprint that the store has of it.
        where: The store, for the message.

    Raises:
        InputError: It cannot be loaded at all.
        MismatchError: It is read as another tokenizer than it was.
    """
    found = []
    for loaded in _readings(folder):
        tokenizer = ByteTokenizer(loaded)
        if tokenizer.fingerprint == expected:
            return Stored(loaded, tokenizer)
        found.append(tokenizer.fingerprint)
    raise MismatchError(
        f"{where}: the files of its tokenizer are whole, but are read here as another tokenizer "
        f"(expected the fingerprint {expected[:12]}…, found {found[0][:12]}…), which would send "
        "the teacher's probabilities to wrong tokens. Install the versions of transformers and "
        "tokenizers that it was captured with, or capture it again with these."
    )


def stored_bytes(folder: Path, expected: str, where: object) -> ByteTokenizer:
    """Return the same with the bytes of its tokens, read once in this process for the same files.

    The files are hashed at every call, so what has changed since is never served.

    Raises:
        InputError, MismatchError: As for :func:`stored_tokenizer`.
    """
    files = sorted((path.name, file_sha256(path)) for path in folder.iterdir() if path.is_file())
    key = (expected, *files)
    if key not in _kept:
        made = stored_tokenizer(folder, expected, where).by_bytes
        while len(_kept) >= _MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = made
    return _kept[key].named(str(folder))


def files_to_store(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files of a tokenizer, by name, after reading them back.

    Raises:
        InputError: They cannot be read back as the same tokenizer.
    """
    files = saved_files(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        if any(_is_same(loaded, tokenizer) for loaded in _readings(Path(folder))):
            return files
    raise InputError(
        f"{tokenizer.name_or_path}: what {type(tokenizer).__name__}.save_pretrained writes is read "
        "back as another tokenizer, so a student would learn other tokens than the teacher's. Save "
        "the tokenizer as PreTrainedTokenizerFast, and give the folder with that."
    )


def _readings(folder: Path) -> Iterator[PreTrainedTokenizerBase]:
    """Yield what a folder is read as: to the letter, then by the class that saved it.

    Raises:
        InputError: It can be read as nothing.
    """
    try:
        first: PreTrainedTokenizerBase | None = _to_the_letter(folder)
    except InputError:
        first = None
    if first is not None:
        yield first
    try:
        second = load_tokenizer(folder, local_files_only=True, advice=_AGAIN)
    except InputError:
        if first is None:
            raise
        return
    yield second


def _is_same(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Tell whether two tokenizers have one fingerprint; mostly their texts tell, much sooner."""
    backends = [t.backend_tokenizer for t in (one, other)]
    is_certain = (
        backends[0].to_str() == backends[1].to_str()
        and backends[0].encode_special_tokens == backends[1].encode_special_tokens
        and one.special_tokens_map == other.special_tokens_map
    )
    return is_certain or fingerprint(one) == fingerprint(other)


def _to_the_letter(folder: Path) -> PreTrainedTokenizerBase:
    """Load `tokenizer.json` as it stands, whatever class it was saved by."""

    def load() -> PreTrainedTokenizerBase:
        from transformers import PreTrainedTokenizerFast

        check_vocabulary(folder)
        loaded: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            str(folder), local_files_only=True
        )
        return loaded

    fault = f"{folder}: PreTrainedTokenizerFast cannot load it"
    return load_or_explain(str(folder), load, fault, _AGAIN)
