"""Tokenise bytes from the middle of a text, where its tokenizer's own tokens do not begin.

A tokenizer treats what it is given as a text of its own: some put a space in front. Here a piece
is tokenised as what it is, the middle of a longer text: the same vocabulary, merges and scores,
without that space. Where a piece begins or ends inside a character, which no tokenizer of strings
is asked about, the bytes of that character become the longest tokens that write them.
"""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from logitstore.text.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_KEPT_PIECES = 1 << 16  # most pieces are a few letters, and come again and again


class MiddleTokenizer:
    """A tokenizer for pieces of a text.

    Args:
        tokenizer: The tokenizer.
        reader: The same, by bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reader: ByteTokenizer) -> None:
        whole: Any = tokenizer
        content = json.loads(whole.backend_tokenizer.to_str())
        content |= dict.fromkeys(("truncation", "padding", "post_processor"))
        self._reader = reader
        self._beginning = _backend(content, whole)
        self._middle = _backend(_without_added_space(content), whole)
        self.ids = lru_cache(_KEPT_PIECES)(self._ids)

    def first(self, data: bytes) -> int | None:
        """Find the first token of a piece; None if it has none, or no token writes its bytes."""
        ids = self.ids(data)
        return ids[0] if ids else None

    def _ids(self, data: bytes, begins: bool = False) -> tuple[int, ...] | None:
        """Tokenise a piece.

        Args:
            data: Its UTF-8 bytes, which may begin or end inside a character.
            begins: Whether it stands where the tokenizer puts a space in front.

        Returns:
            Its tokens; None if no token writes its bytes.
        """
        head, text, tail = _characters(data)
        before, after = self._longest(head), self._longest(tail)
        inside = self._of_text(text, begins)
        if before is None or after is None or inside is None:
            return None
        return (*before, *inside, *after)

    def _of_text(self, text: str, begins: bool) -> tuple[int, ...] | None:
        if not text:
            return ()
        backend = self._beginning if begins else self._middle
        ids = tuple(backend.encode(text, add_special_tokens=False).ids)
        written = b"".join(self._reader.token_bytes[i] or b"" for i in ids)
        if not begins and written == b" " + text.encode():  # a space that could not be left out
            return self._longest(text.encode())
        return ids

    def _longest(self, data: bytes) -> tuple[int, ...] | None:
        """Cut bytes into the longest tokens that write them, from the left."""
        ids: list[int] = []
        while data:
            sizes = range(min(len(data), self._longest_token), 0, -1)
            found = next((n for n in sizes if data[:n] in self._id_of), None)
            if found is None:
                return None
            ids.append(self._id_of[data[:found]])
            data = data[found:]
        return tuple(ids)

    @cached_property
    def _id_of(self) -> dict[bytes, int]:
        """Map bytes to the token that writes them, a real one before a stand-in for a byte."""
        found: dict[bytes, int] = {}
        for i, written in enumerate(self._reader.token_bytes):
            if written and (written not in found or self._reader.is_standin[found[written]]):
                found[written] = i
        return found

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._id_of), default=0)


def _characters(data: bytes) -> tuple[bytes, str, bytes]:
    """Take the bytes of broken characters off both ends of a piece of UTF-8."""
    start = 0
    while start < len(data) and data[start] & 0xC0 == 0x80:
        start += 1
    stop = len(data)
    while True:
        try:
            return data[:start], data[start:stop].decode(), data[stop:]
        except UnicodeDecodeError as error:
            stop = start + error.start


def _backend(content: dict[str, Any], tokenizer: Any) -> Tokenizer:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(content))
    backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    return backend


def _without_added_space(content: dict[str, Any]) -> dict[str, Any]:
    """Copy a `tokenizer.json` without what puts a space in front of a text."""
    copy = dict(content)
    for name, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        copy[name] = _plain(content.get(name), inner)
    return copy


def _plain(part: Any, inner: str) -> Any:
    if not isinstance(part, dict):
        return part
    if part["type"] == "Prepend":
        return None
    if part["type"] == "Metaspace":
        return part | {"prepend_scheme": "never"}
    if part["type"] == "ByteLevel" and "add_prefix_space" in part:
        return part | {"add_prefix_space": False}
    if inner in part:
        kept = [_plain(each, inner) for each in part[inner]]
        return part | {inner: [each for each in kept if each is not None]}
    return part
