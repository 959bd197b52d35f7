"""Tell what kind of rows a dataset has, from its columns and what they hold."""

from __future__ import annotations

from typing import NamedTuple

from logitstore.console.terminal import printable
from logitstore.errors import InputError
from logitstore.rows.column_writer import INTEGERS, JSON, TEXT
from logitstore.rows.source import NESTED, Source

_PROMPT_COMPLETION = ("prompt", "completion")
#: Columns of whole conversations; the second is ShareGPT's name for it.
_TALKS = ("messages", "conversations")
#: Columns that may hold messages.
CONVERSATION = (*_PROMPT_COMPLETION, *_TALKS)
#: Columns of zeros and ones that go with `input_ids`.
MASKS = ("completion_mask", "assistant_masks", "attention_mask")
#: Optional columns of each kind, which are read where a dataset has them.
BESIDE = {
    "conversation": ("tools", "chat_template_kwargs"),
    "tokens": ("labels", *MASKS, "position_ids", "seq_lengths"),
}
#: Columns of what the teacher alone sees, and those that they stand beside.
_PRIVATE = {"teacher_prompt": ("prompt",), "teacher_messages": _TALKS}
#: The column of texts that are as good as the completion.
REFERENCES = "references"


_SHOWN_NAMES, _SHOWN_CHARACTERS = 20, 40


class Kind(NamedTuple):
    """The kind of a dataset's rows.

    Attributes:
        name: `text`, `prompt_completion`, `conversation` or `tokens`.
        columns: The columns of every row, in the order of its segments.
        beside: Optional columns that it has.
        private: The column of what the teacher sees in place of the prompt, or of the messages.
    """

    name: str
    columns: tuple[str, ...]
    beside: tuple[str, ...] = ()
    private: str | None = None

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        return (*self.columns, *self.beside, *([self.private] if self.private else []))


def wanted_columns(text_column: str | None, references_column: str | None) -> dict[str, str | None]:
    """List the columns that any kind of row has, and the shape of each; None: text or messages."""
    columns: dict[str, str | None] = dict.fromkeys((*_PROMPT_COMPLETION, "teacher_prompt"))
    columns["text"] = TEXT
    columns |= dict.fromkeys((*_TALKS, "teacher_messages", REFERENCES), JSON)
    columns |= dict.fromkeys(BESIDE["conversation"], JSON)
    columns |= dict.fromkeys(("input_ids", *BESIDE["tokens"]), INTEGERS)
    if references_column is not None:
        columns[references_column] = JSON
    if text_column is not None:
        columns[text_column] = TEXT
    return columns


def choose_kind(
    source: Source, text_column: str | None, *, prompts: bool = False, private: bool = False
) -> Kind:
    """Choose the kind of a dataset, and the columns to read.

    Args:
        source: The dataset.
        text_column: The column that the user names; a column of prompts, if `prompts`.
        prompts: Whether to read prompts, for completions yet to be written; ignores `completion`.
        private: Whether to read what the teacher alone sees.

    Raises:
        InputError: No known columns, or they hold something else than they must.
    """
    names = source.names
    name, columns = _prompt_kind(source, text_column) if prompts else _kind(source, text_column)
    if not set(columns) <= set(names):
        raise InputError(_no_columns(source.name, names, text_column))
    beside = tuple(column for column in BESIDE.get(name, ()) if column in names)
    chosen = Kind(name, columns, beside)
    if private and (text_column is None or prompts):
        chosen = chosen._replace(private=_private_column(source, columns, text_column))
    for column in columns:
        _check_column(source, column, name, columns)
    for column in (*beside, *([chosen.private] if chosen.private else [])):
        _check_flaw(source, column)
        if name == "tokens" or column == chosen.private:
            _check_type(source, column, name)
    return chosen


def _kind(source: Source, text_column: str | None) -> tuple[str, tuple[str, ...]]:
    names = source.names
    if text_column is not None:
        return "text", (text_column,)
    if "input_ids" in names:
        return "tokens", ("input_ids",)
    if set(_PROMPT_COMPLETION) <= set(names):
        are_messages = any(_has_messages(source, column) for column in _PROMPT_COMPLETION)
        return ("conversation" if are_messages else "prompt_completion"), _PROMPT_COMPLETION
    for column in _TALKS:
        if column in names:
            return "conversation", (column,)
    return "text", ("text",)


def _prompt_kind(source: Source, text_column: str | None) -> tuple[str, tuple[str, ...]]:
    """Choose the kind that rows will be once completions are written, and the column of prompts."""
    names = source.names
    if text_column is not None:
        return "prompt_completion", (text_column,)
    if "prompt" in names:
        kind = "conversation" if _has_messages(source, "prompt") else "prompt_completion"
        return kind, ("prompt",)
    for column in _TALKS:
        if column in names:
            return "conversation", (column,)
    raise InputError(
        f"{source.name}: --generate writes completions for prompts; expected a column `prompt` "
        f"(text or messages) or `messages`, found {listed(names)}. Name a column of "
        "prompts with --text-column, or leave out --generate."
    )


def _has_messages(source: Source, column: str) -> bool:
    return source.shape(column) in (JSON, NESTED, INTEGERS)  # an empty list may be of any


def _private_column(
    source: Source, columns: tuple[str, ...], text_column: str | None
) -> str | None:
    """Find the column of what the teacher alone sees.

    Raises:
        InputError: There is one that has no column to stand beside.
    """
    read = {"prompt" if column == text_column else column for column in columns}
    found = [column for column in _PRIVATE if column in source.names]
    for column in found:
        if not read & set(_PRIVATE[column]):
            expected = " or ".join(f"`{beside}`" for beside in _PRIVATE[column])
            raise InputError(
                f"{source.name}: column {column!r} is what the teacher sees in place of "
                f"{expected}, but rows are read from {', '.join(columns)}. Rename it, or drop it."
            )
    return found[0] if found else None


def references_of(source: Source, column: str | None) -> str | None:
    """Choose the column of texts that are as good as the completion; None: there is none.

    Raises:
        InputError: The user names one that is not there.
    """
    if column is None and REFERENCES not in source.names:
        return None
    chosen = column or REFERENCES
    if chosen not in source.names:
        raise InputError(
            f"{source.name}: no column {chosen!r}; found {listed(source.names)}. Name one of "
            "these with --references-column, or leave it out."
        )
    return chosen


def _check_column(source: Source, column: str, kind: str, columns: tuple[str, ...]) -> None:
    """Check a column that every row must have."""
    _check_flaw(source, column, " or name another column with --text-column" * (kind == "text"))
    _check_type(source, column, kind)
    absent = source.files[column].absent if column in source.files else None
    if absent is not None:
        raise InputError(
            f"{absent} has no key {column!r}, which rows of {' and '.join(columns)} need. Add it, "
            "null where there is nothing, or drop the row."
        )


def _check_flaw(source: Source, column: str, way_out: str = "") -> None:
    if column in source.files and (flaw := source.files[column].flaw) is not None:
        advice = way_out or " or rename the key if it means another"
        raise InputError(f"{flaw}. Repair or drop the row,{advice}.")


def _check_type(source: Source, column: str, kind: str) -> None:
    shape, found = source.shape(column), source.found(column)
    name = source.name
    if kind == "tokens":
        if shape != INTEGERS:
            raise InputError(
                f"{name}: column {column!r} holds {found}, expected lists of integers. Leave the "
                "column out, or name a column of strings with --text-column."
            )
    elif kind == "conversation":
        if shape not in (JSON, NESTED):
            both = " `prompt` and `completion` are both text, or both messages."
            raise InputError(
                f"{name}: column {column!r} holds {found}, expected lists of messages."
                f"{'' if column in _TALKS else both} Write each message as "
                '{"role": …, "content": …}.'
            )
    elif shape not in (TEXT, None):
        raise InputError(
            f"{name}: column {column!r} holds {found}, expected text. Name a column of strings "
            "with --text-column."
        )


def listed(names: list[str]) -> str:
    """List the names of columns, which come from a stranger's file, for a message."""
    shown = [printable(name)[:_SHOWN_CHARACTERS] for name in names[:_SHOWN_NAMES]]
    return ", ".join(shown + ["…"] * (len(names) > _SHOWN_NAMES)) or "none"


def _no_columns(name: str, names: list[str], text_column: str | None) -> str:
    found = listed(names)
    if text_column is not None:
        return f"{name}: no column {text_column!r}; found {found}. Name one of these."
    hint = "Name the column to train on with --text-column."
    if "conversation" in names:
        hint = (
            "Rename 'conversation' to 'messages', with a role and a content in each: "
            "dataset.rename_column('conversation', 'messages')."
        )
    return (
        f"{name}: no known columns; expected `text`, `messages`, `conversations`, `prompt` and "
        f"`completion`, or `input_ids`, found {found}. {hint}"
    )
