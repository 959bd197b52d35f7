"""Tell what kind of rows a dataset has, from its columns and their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from logitstore.errors import InputError
from logitstore.rows import arrow_text as as_bytes

if TYPE_CHECKING:
    from datasets import Dataset

_PROMPT_COMPLETION = ("prompt", "completion")
#: Columns that may hold messages.
CONVERSATION = (*_PROMPT_COMPLETION, "messages")
#: Columns of zeros and ones that go with `input_ids`.
MASKS = ("completion_mask", "assistant_masks", "attention_mask")
#: Optional columns of each kind, which are read where a dataset has them.
BESIDE = {
    "conversation": ("tools", "chat_template_kwargs"),
    "tokens": ("labels", *MASKS),
}


def choose_columns(
    dataset: Dataset, name: str, text_column: str | None, *, prompts: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Choose the kind of a dataset, and the columns to read.

    Args:
        dataset: The dataset.
        name: What the user called it.
        text_column: The column that the user names; a column of prompts, if `prompts`.
        prompts: Whether to read prompts, for completions yet to be written; ignores `completion`.

    Raises:
        InputError: No known columns, or they hold something else than they must.
    """
    names = dataset.column_names
    types = {field.name: field.type for field in dataset.features.arrow_schema}
    kind, columns = _prompt_kind(types, name, text_column) if prompts else _kind(types, text_column)
    if not set(columns) <= set(names):
        raise InputError(_no_columns(name, names, text_column))
    for column in columns:
        _check_type(types[column], name, column, kind)
    beside = [column for column in BESIDE.get(kind, ()) if column in names]
    for column in beside:
        if kind == "tokens":
            _check_type(types[column], name, column, kind)
    return kind, (*columns, *beside)


def _kind(types: Mapping[str, pa.DataType], text_column: str | None) -> tuple[str, tuple[str, ...]]:
    if text_column is not None:
        return "text", (text_column,)
    if "input_ids" in types:
        return "tokens", ("input_ids",)
    if set(_PROMPT_COMPLETION) <= set(types):
        are_messages = any(as_bytes.is_list(types[c]) for c in _PROMPT_COMPLETION)
        return ("conversation" if are_messages else "prompt_completion"), _PROMPT_COMPLETION
    if "messages" in types:
        return "conversation", ("messages",)
    return "text", ("text",)


def _prompt_kind(
    types: Mapping[str, pa.DataType], name: str, text_column: str | None
) -> tuple[str, tuple[str, ...]]:
    """Choose the kind that rows will be once completions are written, and the column of prompts."""
    if text_column is not None:
        return "prompt_completion", (text_column,)
    if "prompt" in types:
        return "conversation" if as_bytes.is_list(types["prompt"]) else "prompt_completion", (
            "prompt",
        )
    if "messages" in types:
        return "conversation", ("messages",)
    raise InputError(
        f"{name}: --generate writes completions for prompts; expected a column `prompt` (text or "
        f"messages) or `messages`, found {', '.join(types) or 'none'}. Name a column of prompts "
        "with --text-column, or leave out --generate."
    )


def _check_type(dtype: pa.DataType, name: str, column: str, kind: str) -> None:
    if kind == "tokens":
        if not as_bytes.is_integers(dtype):
            raise InputError(
                f"{name}: column {column!r} holds {dtype}, expected lists of integers. Leave the "
                "column out, or name a column of strings with --text-column."
            )
    elif kind == "conversation":
        if not as_bytes.is_list(dtype):
            both = " `prompt` and `completion` are both text, or both messages."
            raise InputError(
                f"{name}: column {column!r} holds {dtype}, expected lists of messages."
                f"{'' if column == 'messages' else both} Write each message as "
                '{"role": …, "content": …}.'
            )
    elif not as_bytes.is_text(dtype):
        raise InputError(
            f"{name}: column {column!r} holds {dtype}, expected text. Name a column of strings "
            "with --text-column."
        )


def _no_columns(name: str, names: list[str], text_column: str | None) -> str:
    listed = ", ".join(names) or "none"
    if text_column is not None:
        return f"{name}: no column {text_column!r}; found {listed}. Name one of these."
    hint = "Name the column to train on with --text-column."
    other = next((c for c in ("conversations", "conversation") if c in names), None)
    if other is not None:
        hint = (
            f"Rename {other!r} to 'messages', with a role and a content in each: "
            f"dataset.rename_column({other!r}, 'messages')."
        )
    return (
        f"{name}: no known columns; expected `text`, `messages`, `prompt` and `completion`, or "
        f"`input_ids`, found {listed}. {hint}"
    )
