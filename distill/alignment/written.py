"""How a tokenizer writes bytes in the middle of a text: its own first tokens of them.

`φ*(b)` is the first token of the tokenizer's own tokenisation of the bytes b. It is not always the
longest token that b begins with: a Unigram tokenizer prefers probable pieces to long ones, and a
byte-pair tokenizer merges in the order of its training.

Bytes that are a part of a character are not a text, so no tokenizer can be asked. They are answered
by their exact twin only: of the student's tokens for parts of characters, those that stand in for a
byte are written only for characters without a token, and the longest that begins them would be a
guess.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from logitstore.text.tokenizer import ByteTokenizer

Ids = npt.NDArray[np.int32]

#: Texts that are encoded at once.
_BLOCK = 2**16


class Writer:
    """Finds the tokens with which a tokenizer writes bytes in the middle of a text.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def ids_by_bytes(self) -> dict[bytes, int]:
        """Map the bytes of each token that writes any to the id that the tokenizer produces."""
        ids: dict[bytes, int] = {}
        for i in np.argsort(self._tokenizer.is_standin, kind="stable").tolist():
            written = self._tokenizer.token_bytes[i]
            if written:
                ids.setdefault(written, i)
        return ids

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.ids_by_bytes), default=0)

    @cached_property
    def _backend(self) -> Tokenizer:
        return _from_json(_without_added_space(json.loads(self._tokenizer.to_json())))

    @cached_property
    def _of_words(self) -> Tokenizer:
        return _from_json(json.loads(self._tokenizer.to_json()))

    def longest_prefix(self, written: bytes) -> int:
        """Find the token with the longest bytes that `written` begins with, or -1."""
        for length in range(min(len(written), self._longest), 0, -1):
            token_id = self.ids_by_bytes.get(written[:length])
            if token_id is not None:
                return token_id
        return -1

    def written(self, token_id: int) -> bytes:
        """Return the bytes of a token; none of -1."""
        return b"" if token_id < 0 else self._tokenizer.token_bytes[token_id] or b""

    def first(self, strings: Sequence[bytes]) -> Ids:
        """Find (n,) the first token of each string of bytes; -1 where that is not known."""
        tokens = self.all(strings)
        return np.array([each[0] if each else -1 for each in tokens], np.int32)

    def all(self, strings: Sequence[bytes]) -> list[list[int]]:
        """List the tokens of each string of bytes; none where they are not known.

        The tokens write the beginning of the string. They write all of it unless a normaliser
        changes it, or it ends inside a character.
        """
        texts = list(map(_text_of, strings))
        asked = [i for i, text in enumerate(texts) if text]
        encoded = _encoded(self._backend, [texts[i] for i in asked])
        tokens: list[list[int]] = [[]] * len(strings)
        for i, ids in zip(asked, encoded, strict=True):
            tokens[i] = self._checked(strings[i], ids)
        unknown = [i for i, found in enumerate(tokens) if not found]
        if self._tokenizer.joins_spaces:
            self._add_words(tokens, strings, [i for i in unknown if texts[i][:1] == " "])
        for i in unknown:
            tokens[i] = tokens[i] or self._twin(strings[i]) or self._begun(strings[i], texts[i])
        return tokens

    def _add_words(
        self, tokens: list[list[int]], strings: Sequence[bytes], chosen: list[int]
    ) -> None:
        """Fill in words with a space in front, for a tokenizer that drops white space.

        It puts its mark in front of a word that it is given without one.
        """
        encoded = _encoded(self._of_words, [_text_of(strings[i])[1:] for i in chosen])
        for i, ids in zip(chosen, encoded, strict=True):
            tokens[i] = self._checked(strings[i], ids)

    def _begun(self, written: bytes, text: str) -> list[int]:
        """Find the longest token that begins a text: of a word's middle nothing else is known."""
        found = self.longest_prefix(written) if text and text.encode() == written else -1
        return [found] if found >= 0 else []

    def _twin(self, written: bytes) -> list[int]:
        """Find the token of these bytes, unless it only stands in for a byte."""
        token_id = self.ids_by_bytes.get(written, -1)
        return [] if token_id < 0 or self._tokenizer.is_standin[token_id] else [token_id]

    def _checked(self, written: bytes, ids: list[int]) -> list[int]:
        """Drop tokens without bytes, and those from the first on that write something else."""
        token_bytes = self._tokenizer.token_bytes
        kept, place = [], 0
        for i in ids:
            piece = token_bytes[i]
            if piece == b"":
                continue
            if piece is None or not written.startswith(piece, place):
                break
            kept.append(i)
            place += len(piece)
        if place < len(written) and not _is_whole(written):
            # The last token may go on with the character inside of which the string ends.
            return kept[:-1]
        return kept


def _from_json(content: Any) -> Tokenizer:
    backend = Tokenizer.from_str(json.dumps(content))
    backend.encode_special_tokens = True  # the name of a special token is a text like others
    return backend


def _encoded(backend: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Encode texts, in blocks: an encoding takes far more memory than its text."""
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        for encoding in backend.encode_batch_fast(block, add_special_tokens=False):
            yield encoding.ids


def _text_of(written: bytes) -> str:
    """Decode the whole characters that the bytes begin with; empty if there are none."""
    if written[:1] and b"\x80" <= written[:1] < b"\xc0":
        return ""  # most strings that are no text begin inside a character
    try:
        return written.decode()
    except UnicodeDecodeError as error:
        is_cut = error.end == len(written) and error.reason == "unexpected end of data"
        return written.decode("utf-8", "ignore") if is_cut else ""


def _is_whole(written: bytes) -> bool:
    """Tell whether the bytes are a text."""
    return len(_text_of(written).encode()) == len(written)


def _without_added_space(content: Any) -> Any:
    """Change a parsed `tokenizer.json` so that nothing is put in front of a text."""
    if isinstance(content, list):
        kept = [each for each in content if not _prepends(each)]
        return [_without_added_space(each) for each in kept]
    if not isinstance(content, dict):
        return content
    changed = {key: None if _prepends(part) else part for key, part in content.items()}
    for key in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers"):
        if changed.get(key):
            changed[key] = _without_added_space(changed[key])
    if changed.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
    if changed.get("type") == "ByteLevel":
        changed["add_prefix_space"] = False
    return changed


def _prepends(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"
