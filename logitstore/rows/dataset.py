"""Read rows of a user's dataset: text, a prompt and its completion, a conversation, or tokens.

A dataset is a hub id, a folder (of data files, or from `save_to_disk`), a `.jsonl`, `.json`,
`.parquet` or `.txt` file (a row a line), or a `datasets.Dataset`. Its columns decide its kind: the
first of these whose columns it has:

    tokens              `input_ids` of the teacher's tokenizer; all of them are supervised but for
                        -100 in `labels` and zeros in `completion_mask` or `assistant_masks`
    prompt_completion   `prompt` is context, `completion` is supervised
    conversation        the same as lists of messages, or `messages`: assistant turns are supervised
    text                `text`, or the column that the user names, is supervised

A conversation may have `tools` and `chat_template_kwargs` beside it. `references`, other texts that
are as good as a row's completion, are for the evaluation of answers; no store has them. Rows keep
their order and number: an empty or missing text is still a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64, Bools
from logitstore.records import Segment
from logitstore.rows import arrow_text as as_bytes
from logitstore.rows.kinds import BESIDE, CONVERSATION, MASKS, choose_columns
from logitstore.rows.source_files import mapped_files
from logitstore.rows.sources import load_split
from logitstore.text.conversation import Message, parsed, read_messages, without_missing
from logitstore.text.token_ids import NO_LABEL, TokenRow

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH_ROWS = 10_000
#: The column of texts that are as good as the completion.
REFERENCES = "references"


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
    dataset: str | Path | Dataset,
    *,
    split: str | None = None,
    config_name: str | None = None,
    text_column: str | None = None,
    revision: str | None = None,
    prompts: bool = False,
    references_column: str | None = None,
) -> Rows:
    """Open a dataset and choose the columns to read.

    Args:
        dataset: A hub id or a path, or a `datasets.Dataset` itself.
        split: The split, or a slice such as `train[:1000]`. Not needed if there is only one.
        config_name: The configuration, for a hub id or a folder.
        text_column: The column to train on, instead of `text`.
        revision: Branch, tag or commit, for a hub id.
        prompts: Only prompts are read, for completions that are yet to be written.
        references_column: The column of `Rows.references`, instead of `references`.

    Raises:
        InputError: It does not exist, cannot be read, has no rows, or its columns are not known; a
            prompt that has a completion already.
    """
    loaded, name = load_split(dataset, split, config_name, revision)
    kind, columns = choose_columns(loaded, name, text_column, prompts=prompts)
    if len(loaded) == 0:
        raise InputError(
            f"{name}: 0 rows, so nothing to capture. Give a dataset or --split with some."
        )
    references = _references(loaded, name, references_column)
    rows = Rows(loaded.select_columns(list(columns)), name, kind, columns, references)
    if prompts:
        _reject_completed(loaded, rows)
    return rows


class Rows:
    """The rows of a dataset, one by one.

    Attributes:
        name: What the user called it, for messages.
        kind: `text`, `prompt_completion`, `conversation` or `tokens`.
        columns: The columns that are read, in the order of the segments.
    """

    def __init__(
        self,
        dataset: Dataset,
        name: str,
        kind: str,
        columns: tuple[str, ...],
        references: Dataset | None = None,
    ) -> None:
        self.name, self.kind, self.columns = name, kind, columns
        self._references = references
        self._dataset = dataset.with_format("arrow")
        self._decoded = dataset.with_format(None)  # nested values, JSON among them, as Python's

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def files(self) -> Sequence[Path]:
        """The files that the rows are mapped from: what changes there, changes the rows."""
        return mapped_files(self._decoded)

    def where(self, i: int) -> str:
        """Name row `i` for messages."""
        return f"{self.name}: row {i:,}"

    def segments(self, i: int) -> tuple[Segment, ...]:
        """Read row `i` of `text` or `prompt_completion` rows; a missing text is empty.

        Raises:
            InputError: It is not UTF-8.
        """
        assert self.kind in ("text", "prompt_completion"), self.kind
        table = self._table(i)
        try:
            texts = [table.column(column)[0].as_py() or "" for column in self.columns]
        except UnicodeDecodeError:
            raise self._not_utf8(i) from None
        supervised = (True,) if self.kind == "text" else (False, True)[: len(texts)]
        return tuple(Segment(text, flag) for text, flag in zip(texts, supervised, strict=True))

    def dialogue(self, i: int) -> Dialogue:
        """Read row `i` of `conversation` rows.

        Raises:
            InputError: Its messages, tools or variables do not have the form that they must have.
        """
        assert self.kind == "conversation", self.kind
        row, where = self._decoded[i], self.where(i)
        parts = [read_messages(row[c], where) for c in self.columns if c in CONVERSATION]
        first = len(parts[0]) if len(parts) == 2 else 0
        tools = _beside(row, "tools", list, where)
        kwargs = _beside(row, "chat_template_kwargs", dict, where)
        return Dialogue([m for part in parts for m in part], first, tools or None, kwargs or {})

    def tokens(self, i: int) -> TokenRow:
        """Read row `i` of `tokens` rows, without padding (zeros of `attention_mask`).

        Raises:
            InputError: Labels or masks that do not belong to its tokens.
        """
        assert self.kind == "tokens", self.kind
        table, where = self._table(i), self.where(i)
        row = {c: _integers(table.column(c)[0].as_py(), f"{where}: {c}") for c in self.columns}
        ids = row["input_ids"]
        for column, values in row.items():
            if len(values) != len(ids):
                raise InputError(
                    f"{where}: {column} has {len(values):,} values, but there are {len(ids):,} "
                    "input_ids. Give one a token, or leave the column out."
                )
        is_wanted = np.ones(len(ids), np.bool_)
        if "labels" in row:
            is_wanted &= row["labels"] != NO_LABEL
            _check_labels(ids, row["labels"], is_wanted, where)
        for mask in set(MASKS) & set(row):
            is_wanted &= row[mask] != 0
        is_token = row.get("attention_mask", np.ones_like(ids)) != 0  # not padding
        return TokenRow(ids[is_token], is_wanted[is_token])

    def references(self, i: int) -> list[str]:
        """Read the texts that are as good as the completion of row `i`; empty where it has none.

        Raises:
            InputError: They are not a list of texts, nor one under `text` as SQuAD has it.
        """
        if self._references is None:
            return []
        ((column, value),) = self._references[i].items()
        listed = value.get("text") if isinstance(value, dict) else value
        if listed is None:
            return []
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise InputError(
                f"{self.where(i)}: {column!r} holds {value!r:.80}, expected a list of texts. Write "
                "the column so, or name another one with --references-column."
            )
        return listed

    def text_bytes(self) -> I64:
        """Count the bytes of each row: UTF-8 of its text or of its messages' JSON, 8 a token id."""
        return np.concatenate(
            [
                sum(as_bytes.lengths_of(table.column(c)) for c in self.columns)
                for _, table in self._tables()
            ]
        )

    def digest(self) -> str:
        """Compute the SHA-256 of the kind, and of every used column's lengths and bytes.

        The same rows give the same digest from any file format or chunking, and from a text column
        of any name. Every text is also checked to be UTF-8.

        Raises:
            InputError: A text is not UTF-8; names the first such row.
        """
        parts = [(hashlib.sha256(), hashlib.sha256()) for _ in self.columns]
        with progress(len(self), "read the dataset", "rows") as shown:
            for first, table in self._tables():
                for column, (lengths, content) in zip(self.columns, parts, strict=True):
                    written = table.column(column)
                    if self.kind in ("text", "prompt_completion"):
                        self._check_utf8(first, written)
                    lengths.update(as_bytes.lengths_of(written).astype("<i8").tobytes())
                    for chunk in written.chunks:
                        content.update(as_bytes.content_of(chunk))
                shown.update(len(table))
        hashes = [[part.hexdigest() for part in pair] for pair in parts]
        whole = [self.kind, len(self), hashes]
        if self.kind in BESIDE:
            whole.append(list(self.columns))  # which of the possible columns these are
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def _table(self, i: int) -> pa.Table:
        table = self._dataset[i : i + 1]
        if len(table) != 1:
            raise IndexError(f"row {i} of {len(self)}")
        return table

    def _tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield (first row, table): the used columns as bytes without nulls, some rows a time."""
        for first in range(0, len(self), _BATCH_ROWS):
            stop = min(first + _BATCH_ROWS, len(self))
            columns = [self._bytes_of(c, first, stop) for c in self.columns]
            yield first, pa.table(columns, names=list(self.columns))

    def _bytes_of(self, column: str, first: int, stop: int) -> pa.ChunkedArray:
        if self.kind == "conversation":
            values = self._decoded[first:stop][column]
            return as_bytes.of_values(
                values, [f"{self.where(i)}: {column}" for i in range(first, stop)]
            )
        values = self._dataset[first:stop].column(column)
        return as_bytes.of_integers(values) if self.kind == "tokens" else as_bytes.of_text(values)

    def _check_utf8(self, first: int, texts: pa.ChunkedArray) -> None:
        try:
            texts.cast(pa.large_string())  # Arrow checks the text here
        except pa.ArrowInvalid:
            for i, text in enumerate(texts):
                if not _is_utf8(text.as_py()):
                    raise self._not_utf8(first + i) from None
            raise

    def _not_utf8(self, row: int) -> InputError:
        return InputError(
            f"{self.name}: row {row:,} is not UTF-8 text. Write the dataset again from text "
            "that was decoded with its own encoding, or drop the row."
        )


def _references(loaded: Dataset, name: str, column: str | None) -> Dataset | None:
    if column is None and REFERENCES not in loaded.column_names:
        return None
    chosen = column or REFERENCES
    if chosen not in loaded.column_names:
        raise InputError(
            f"{name}: no column {chosen!r}; found {', '.join(loaded.column_names)}. Name one of "
            "these with --references-column, or leave it out."
        )
    return loaded.select_columns([chosen]).with_format(None)


def _reject_completed(dataset: Dataset, rows: Rows) -> None:
    """Reject prompts with a completion: it would be lost, or read as if the teacher wrote it."""
    row = _first_answered(rows) if "messages" in rows.columns else _first_completion(dataset)
    if row is not None:
        raise InputError(
            f"{rows.where(row)}: has a completion already, and --generate writes completions. "
            "Leave out --generate to capture what is there, or drop the completions."
        )


def _first_completion(dataset: Dataset) -> int | None:
    if "completion" not in dataset.column_names:
        return None
    chosen = dataset.select_columns(["completion"]).with_format(None)
    for first in range(0, len(chosen), _BATCH_ROWS):
        for i, value in enumerate(chosen[first : first + _BATCH_ROWS]["completion"], first):
            if value:
                return i
    return None


def _first_answered(rows: Rows) -> int | None:
    """Find the first conversation that ends with the assistant's turn."""
    return next(
        (
            i
            for i in range(len(rows))
            if (messages := rows.dialogue(i).messages) and messages[-1]["role"] == "assistant"
        ),
        None,
    )


def _beside(row: Mapping[str, Any], column: str, kind: type, where: str) -> Any:
    """Read a value of an optional column, without keys that hold None; None where it is missing."""
    place = f"{where}: {column}"
    value = without_missing(parsed(row.get(column) or None, place))
    if value is not None and not isinstance(value, kind):
        raise InputError(
            f"{place}: expected a {kind.__name__} (or JSON of one), found {type(value).__name__}. "
            "Change it, or leave the column out."
        )
    return value


def _integers(values: list[Any] | None, where: str) -> I64:
    if values is not None and None in values:
        raise InputError(f"{where}: value {values.index(None):,} is missing. Drop the row.")
    return np.array(values or [], np.int64)


def _check_labels(
    ids: I64,
    labels: I64,
    is_wanted: Bools,
    where: str,
) -> None:
    wrong = np.flatnonzero((labels != ids) & is_wanted)
    if len(wrong):
        t = int(wrong[0])
        raise InputError(
            f"{where}: label {t:,} is {labels[t]}, expected the token itself ({ids[t]}) or "
            f"{NO_LABEL}. Labels lie on their own tokens here, as Trainer has them: do not "
            "shift them."
        )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
