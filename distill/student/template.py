"""The chat template that a student reads a store's conversations with, as flags name it."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from logitstore.errors import InputError
from logitstore.storage.paths import StorePath
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.tokenizer import ByteTokenizer


def template_of(
    rendering: Mapping[str, Any],
    store: StorePath,
    tokenizer: PreTrainedTokenizerBase,
    student: ByteTokenizer,
    *,
    path: str | None = None,
    kwargs: Mapping[str, Any] | str | None = None,
    spelt: Callable[[str], str] = str,
) -> ChatTemplate | None:
    """Make the template of a student for a store; None if its rows are not conversations.

    Args:
        rendering: How the store's rows became text (`StoreSpec.rendering`).
        store: The store, for messages.
        tokenizer: The student's.
        student: The same, by bytes.
        path: `--chat_template_path`.
        kwargs: `--chat_template_kwargs`, also as JSON.
        spelt: Spells the name of a flag as the command has it that was typed.

    Raises:
        InputError: There is no such template, or a flag that has no effect.
    """
    given = {"--chat_template_path": path, "--chat_template_kwargs": kwargs}
    if rendering["kind"] == "conversation":
        file, variables = map(spelt, given)
        return ChatTemplate.of(
            tokenizer, student, path=path, kwargs=parse_kwargs(kwargs, variables), flag=file
        )
    for flag, value in given.items():
        if value is not None:
            raise InputError(
                f"{store}: its rows are not conversations, so {spelt(flag)} {value} would have no "
                f"effect. Leave it out."
            )
    return None
