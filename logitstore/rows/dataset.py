"""Read rows of a user's dataset: text, a prompt and its completion, a conversation, or tokens.

A dataset is a hub id, a folder (of data files, or from `save_to_disk`), one or several `.jsonl`,
`.json`, `.parquet` or `.txt` files (a row a line; all but Parquet also as `.gz` or `.zst`), a
pattern such as `data/*.jsonl`, or a `datasets.Dataset`. Its columns decide its kind: the first of
these whose columns it has:

    tokens              `input_ids` of the teacher's tokenizer; all of them are supervised but for
                        -100 in `labels` and zeros in `completion_mask` or `assistant_masks`;
                        documents packed into a row are cut apart
    prompt_completion   `prompt` is context, `completion` is supervised
    conversation        the same as lists of messages, or `messages`, or ShareGPT's
                        `conversations`: assistant turns are supervised
    text                `text`, or the column that the user names, is supervised

A conversation may have `tools` and `chat_template_kwargs` beside it. Beside `prompt` may stand
`teacher_prompt`, and beside `messages` `teacher_messages`: what the teacher alone sees in its
place. `references`, other texts that are as good as a row's completion, are for the evaluation of
answers; no store has them. Rows keep their order and number: an empty or missing text is still a
row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.records import Segment
from logitstore.rows.kept_survey import kept_survey
from logitstore.rows.kinds import (
    BESIDE,
    Kind,
    choose_kind,
    references_of,
    wanted_columns,
)
from logitstore.rows.nested import read_nested
from logitstore.rows.source import Source
from logitstore.rows.source_files import mapped_files
from logitstore.rows.sources import load_split
from logitstore.rows.survey import Survey
from logitstore.rows.token_rows import documents_of
from logitstore.text.conversation import ASSISTANT, Message
from logitstore.text.token_ids import TokenRow

if TYPE_CHECKING:
    from logitstore.rows.sources import DatasetArg

_BATCH_ROWS = 10_000


class Dialogue(NamedTuple):
    """A row that is a conversation, as the dataset has it.

    Attributes:
        messages: The messages: those of the prompt, then those of the completion.
        first: The number of the first message that may be supervised.
        tools: The row's tools, if it has any.
        kwargs: Variables of the chat template, of this row alone.
    """

    messages: list[Message]
    first: int
    tools: list[Any] | None
    kwargs: dict[str, Any]


def load_rows(
    dataset: DatasetArg,
    *,
    split: str | None = None,
    config_name: str | None = None,
    text_column: str | None = None,
    revision: str | None = None,
    prompts: bool = False,
    private: bool = False,
    references_column: str | None = None,
) -> Rows:
    """Open a dataset and choose the columns to read.

    Args:
        dataset: A hub id or a path, several paths or patterns, or a `datasets.Dataset` itself.
        split: The split, or a slice such as `train[:1000]`. Not needed if there is only one.
        config_name: The configuration, for a hub id or a folder.
        text_column: The column to train on, instead of `text`.
        revision: Branch, tag or commit, for a hub id.
        prompts: Only prompts are read, for completions that are yet to be written.
        private: Whether to read what the teacher alone sees (`teacher_prompt`,
            `teacher_messages`).
        references_column: The column of `Rows.references`, instead of `references`.

    Raises:
        InputError: It does not exist, cannot be read, has no rows, or its columns are not known; a
            prompt that has a completion already.
        StorageError: The cache of `datasets` cannot be written.
    """
    wanted = wanted_columns(text_column, references_column)
    source = load_split(dataset, split, config_name, revision, wanted)
    if len(source.dataset) == 0:
        raise InputError(
            f"{source.name}: 0 rows, so nothing to capture. Give a dataset or --split with some."
        )
    kind = choose_kind(source, text_column, prompts=prompts, private=private)
    rows = Rows(source, kind, references_of(source, references_column))
    if prompts:
        _reject_completed(rows)
    return rows


class Rows:
    """The rows of a dataset, one by one.

    Attributes:
        source: The dataset.
        name: What the user called it, for messages.
        kind: `text`, `prompt_completion`, `conversation` or `tokens`.
        columns: The columns that are read, in the order of the segments.
        private: The column of what the teacher alone sees; None: it sees what the student sees.
        layout: The columns of its kind that it has.
    """

    def __init__(
        self,
        source: Source,
        kind: Kind,
        references: str | None = None,
        *,
        known: Survey | None = None,
    ) -> None:
        """Choose the columns; `known` is what reading all rows would tell, where that was done."""
        self.source, self.name, self.layout, self._known = source, source.name, kind, known
        self.kind, self.columns, self.private = kind.name, kind.all_columns, kind.private
        self._main, self._references_column = kind.columns, references
        chosen = source.dataset.select_columns(list(self.columns))
        self._dataset = chosen.with_format("arrow")
        self._decoded = chosen.with_format(None)  # nested values, JSON among them, as Python's
        self._references = None
        if references is not None:
            self._references = source.dataset.select_columns([references]).with_format(None)

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def files(self) -> Sequence[Path]:
        """The files that the rows are mapped from: what changes there, changes the rows."""
        return mapped_files(self._decoded)

    def where(self, i: int) -> str:
        """Name row `i` for messages."""
        return self.source.where(i)

    def segments(self, i: int) -> tuple[Segment, ...]:
        """Read row `i` of `text` or `prompt_completion` rows; a missing text is empty.

        Raises:
            InputError: It is not UTF-8.
        """
        assert self.kind in ("text", "prompt_completion"), self.kind
        return self._segments(i, self._main)

    def teacher_segments(self, i: int) -> tuple[Segment, ...] | None:
        """Read row `i` of `prompt_completion` rows as the teacher alone sees it.

        Returns:
            None where the teacher sees what the student sees.
        """
        if self.private is None or self._decoded[i][self.private] is None:
            return None
        return self._segments(i, (self.private, *self._main[1:]))

    def dialogue(self, i: int) -> Dialogue:
        """Read row `i` of `conversation` rows.

        Raises:
            InputError: Its messages, tools or variables do not have the form that they must have.
        """
        assert self.kind == "conversation", self.kind
        return self._dialogue(i, self._main)

    def teacher_dialogue(self, i: int) -> Dialogue | None:
        """Read row `i` of `conversation` rows as the teacher alone sees it.

        Returns:
            None where the teacher sees what the student sees.

        Raises:
            InputError: As for :meth:`dialogue`.
        """
        if self.private is None or self._decoded[i][self.private] is None:
            return None
        return self._dialogue(i, (self.private, *self._main[1:]))

    def documents(self, i: int) -> list[TokenRow]:
        """Read the documents of row `i` of `tokens` rows, without padding; at least one.

        Raises:
            InputError: Labels, masks or positions that do not belong to its tokens.
        """
        assert self.kind == "tokens", self.kind
        table = self._table(i)
        row = {column: table.column(column)[0].as_py() for column in self.columns}
        return documents_of(row, self.where(i))

    def references(self, i: int) -> list[str]:
        """Read the texts that are as good as the completion of row `i`; empty where it has none.

        Raises:
            InputError: They are not a list of texts, nor one under `text` as SQuAD has it.
        """
        column = self._references_column
        if self._references is None or column is None:
            return []
        value = self._references[i][column]
        if column in self.source.files and value is not None:
            value = json.loads(value)
        listed = value.get("text") if isinstance(value, dict) else value
        if listed is None:
            return []
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise InputError(
                f"{self.where(i)}: {column!r} holds {value!r:.80}, expected a list of texts. Write "
                "the column so, or name another one with --references-column."
            )
        return listed

    @cached_property
    def survey(self) -> Survey:
        """What reading all rows once tells of them; it is read when first asked for.

        Of a large dataset it is kept for the next process, see :mod:`logitstore.rows.kept_survey`.

        Raises:
            InputError: A row that cannot be read; names it.
        """
        return kept_survey(self) if self._known is None else self._known

    def text_bytes(self) -> I64:
        """Count the bytes of each row: UTF-8 of its text or of its messages' JSON, 8 a token id."""
        return self.survey.text_bytes

    def digest(self) -> str:
        """Compute the SHA-256 of the kind, and of every used column's lengths and bytes.

        The same rows give the same digest from any file format or chunking, and from a text column
        of any name. Every text is also checked to be UTF-8.

        Raises:
            InputError: A text is not UTF-8; names the first such row.
        """
        return self.survey.digest

    def arrow(self, first: int, stop: int) -> pa.Table:
        """Return some of the rows as Arrow has them."""
        return self._dataset[first:stop]

    def nested(self, first: int, stop: int) -> dict[str, list[Any]]:
        """Return some of the rows of conversations column by column, checked.

        Keys without a value are left out where they say nothing: see `rows/nested.py`.

        Raises:
            InputError: As for :meth:`dialogue`.
        """
        columns = self._decoded[first:stop]
        return {
            name: [self._value(value, name, self.where(i)) for i, value in enumerate(found, first)]
            for name, found in columns.items()
        }

    def not_utf8(self, row: int) -> InputError:
        """Make the error for a row whose text is no text."""
        return InputError(
            f"{self.name}: row {row:,} is not UTF-8 text. Write the dataset again from text "
            "that was decoded with its own encoding, or drop the row."
        )

    def _segments(self, i: int, columns: Sequence[str]) -> tuple[Segment, ...]:
        table = self._table(i)
        try:
            texts = [table.column(column)[0].as_py() or "" for column in columns]
        except UnicodeDecodeError:
            raise self.not_utf8(i) from None
        supervised = (True,) if self.kind == "text" else (False, True)[: len(texts)]
        return tuple(Segment(text, flag) for text, flag in zip(texts, supervised, strict=True))

    def _dialogue(self, i: int, columns: Sequence[str]) -> Dialogue:
        row, where = self._decoded[i], self.where(i)
        parts = [self._value(row[column], column, where) or [] for column in columns]
        first = len(parts[0]) if len(parts) == 2 else 0
        beside = {c: self._value(row[c], c, where) for c in BESIDE[self.kind] if c in row}
        return Dialogue(
            [message for part in parts for message in part],
            first,
            beside.get("tools") or None,
            beside.get("chat_template_kwargs") or {},
        )

    def _value(self, value: Any, column: str, where: str) -> Any:
        return read_nested(
            value,
            column,
            where,
            are_messages=column in self.message_columns,
            is_json=column in self.source.files,
            is_exact=self.source.is_exact(column),
        )

    @property
    def message_columns(self) -> tuple[str, ...]:
        """The columns of conversations that hold messages."""
        return (*self._main, *([self.private] if self.private else []))

    def _table(self, i: int) -> pa.Table:
        table = self._dataset[i : i + 1]
        if len(table) != 1:
            raise IndexError(f"row {i} of {len(self)}")
        return table


def _reject_completed(rows: Rows) -> None:
    """Reject prompts with a completion: it would be lost, or read as if the teacher wrote it."""
    is_talk = rows.kind == "conversation" and "prompt" not in rows.columns
    row = _first_answered(rows) if is_talk else _first_completion(rows.source)
    if row is not None:
        raise InputError(
            f"{rows.where(row)}: has a completion already, and --generate writes completions. "
            "Leave out --generate to capture what is there, or drop the completions."
        )


def _first_completion(source: Source) -> int | None:
    if "completion" not in source.dataset.column_names:
        return None
    chosen = source.dataset.select_columns(["completion"]).with_format(None)
    for first in range(0, len(chosen), _BATCH_ROWS):
        for i, value in enumerate(chosen[first : first + _BATCH_ROWS]["completion"], first):
            if value and value not in ("[]", '""'):  # of JSON
                return i
    return None


def _first_answered(rows: Rows) -> int | None:
    """Find the first conversation that ends with the assistant's turn."""
    return next(
        (
            i
            for i in range(len(rows))
            if (messages := rows.dialogue(i).messages) and messages[-1]["role"] == ASSISTANT
        ),
        None,
    )
