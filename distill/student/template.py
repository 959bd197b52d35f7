"""The chat template that a student reads a store's conversations with, as flags name it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from logitstore.errors import InputError
from logitstore.format.spec import StoreSpec
from logitstore.storage.paths import StorePath
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.tokenizer import ByteTokenizer


class Conversations(Protocol):
    """Of a store, what says whether its rows are conversations."""

    @property
    def spec(self) -> StoreSpec: ...
    @property
    def path(self) -> StorePath: ...


class TemplateFlags(Protocol):
    """Settings that name a template: of a run, and of what looks at a run before it is made."""

    @property
    def chat_template_path(self) -> str | None: ...
    @property
    def chat_template_kwargs(self) -> Mapping[str, Any] | str | None: ...


def template_of(
    store: Conversations,
    tokenizer: PreTrainedTokenizerBase,
    student: ByteTokenizer,
    flags: TemplateFlags,
    *,
    spelt: Callable[[str], str] = str,
) -> ChatTemplate | None:
    """Make the template of a student for a store; None if its rows are not conversations.

    Args:
        store: The store.
        tokenizer: The student's.
        student: The same, by bytes.
        flags: Which template, with which variables (also as JSON).
        spelt: Spells the name of a flag as the command has it that was typed.

    Raises:
        InputError: There is no such template, or a flag that has no effect.
    """
    path, kwargs = flags.chat_template_path, flags.chat_template_kwargs
    given = {"--chat_template_path": path, "--chat_template_kwargs": kwargs}
    if store.spec.rendering["kind"] == "conversation":
        file, variables = map(spelt, given)
        return ChatTemplate.of(
            tokenizer, student, path=path, kwargs=parse_kwargs(kwargs, variables), flag=file
        )
    for flag, value in given.items():
        if value is not None:
            raise InputError(
                f"{store.path}: its rows are not conversations, so {spelt(flag)} {value} would "
                f"have no effect. Leave it out."
            )
    return None
