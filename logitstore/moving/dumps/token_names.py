"""Find the ids of tokens that a dump names by text: `token_id:123` (vLLM, on request) or bytes.

A text names a token only if no other token decodes to it. Servers show a token of SentencePiece
without the space before it, and bytes that are not a character as U+FFFD. Such names are ambiguous,
and are rejected rather than guessed.
"""

import re
from collections.abc import Sequence

import numpy as np

from logitstore.errors import InputError
from logitstore.text.tokenizer import ByteTokenizer

_BY_ID = re.compile(r"token_id:([0-9]{1,18})")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_ASK = (
    "Ask for ids instead: with vLLM, `return_tokens_as_token_ids: true` in the request, or "
    "`return_token_ids: true` and its `prompt_logprobs`"
)
_AMBIGUOUS = -1


class TokenNames:
    """A map from the names of one tokenizer's tokens to ids."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[bytes, int] = {}
        for i, written in enumerate(tokenizer.written(np.arange(tokenizer.size))):
            if written:
                self._ids[written] = _AMBIGUOUS if written in self._ids else i

    def id_of(self, name: str, where: str, data: Sequence[int] | None = None) -> int:
        """Return the id of the token that a name means.

        Args:
            name: The name in the dump.
            where: The name of the place in messages.
            data: The bytes of the token, if the dump has those, too.

        Raises:
            InputError: No token has this name, or several could.
        """
        if match := _BY_ID.fullmatch(name):
            return int(match[1])
        written = name.encode(errors="replace") if data is None else bytes(data)
        token_id = self._ids.get(written)
        if self._tokenizer.adds_space or written == _REPLACEMENT or token_id == _AMBIGUOUS:
            raise InputError(
                f"{where}: the text {name!r} does not say which token of {self._tokenizer.name} "
                f"it is. {_ASK}."
            )
        if token_id is None:
            raise InputError(
                f"{where}: {name!r} is not a token of {self._tokenizer.name}. Give the --tokenizer "
                f"that the dump was made with. {_ASK}."
            )
        return token_id
