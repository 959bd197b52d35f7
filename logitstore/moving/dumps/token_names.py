"""Tokens that a dump names by text: `token_id:123` as vLLM writes on request, else their bytes.

A text is a token only where no other token writes it. Servers show a token of SentencePiece without
the space before it, and bytes that make no character as U+FFFD; such names say too little, and are
refused rather than guessed.
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
    """Names of one tokenizer's tokens -> ids."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[bytes, int] = {}
        for i, written in enumerate(tokenizer.written(np.arange(tokenizer.size))):
            if written:
                self._ids[written] = _AMBIGUOUS if written in self._ids else i

    def id_of(self, name: str, where: str, data: Sequence[int] | None = None) -> int:
        """The id that a name means.

        Args:
            name: As the dump has it.
            where: Names the token in messages.
            data: The token's bytes, where the dump has those too.

        Raises:
            InputError: No token has this name, or more than one could.
        """
        if match := _BY_ID.fullmatch(name):
            return int(match[1])
        written = name.encode(errors="replace") if data is None else bytes(data)
        found = self._ids.get(written)
        if self._tokenizer.adds_space or written == _REPLACEMENT or found == _AMBIGUOUS:
            raise InputError(
                f"{where}: the text {name!r} does not say which token of {self._tokenizer.name} "
                f"it is. {_ASK}."
            )
        if found is None:
            raise InputError(
                f"{where}: {name!r} is no token of {self._tokenizer.name}. Give the --tokenizer "
                f"that the dump was made with. {_ASK}."
            )
        return found
