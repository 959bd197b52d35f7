"""Read all rows of a dataset once, for what has to be known before the first is captured.

The digest is that of the kind, and of every used column's lengths and bytes. Stores keep it, so it
is the same from any file format or chunking, and for a text column of any name.

Shape legend: R = rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.rows import arrow_text as as_bytes
from logitstore.rows.kinds import BESIDE
from logitstore.rows.token_rows import begins_of
from logitstore.text.conversation import SAYS

_BATCH_ROWS = 10_000
#: What rows may say of themselves that decides a store's records: of a message, whether it is
#: trained on; of a row of tokens by its mask alone, that it has several documents.
MESSAGES, DOCUMENTS = "messages", "documents"


class Rows(Protocol):
    """The rows of a dataset, as :class:`logitstore.rows.dataset.Rows` has them."""

    kind: str
    columns: tuple[str, ...]
    private: str | None

    @property
    def message_columns(self) -> tuple[str, ...]:
        """The columns of conversations that hold messages."""

    def __len__(self) -> int: ...

    def where(self, i: int) -> str:
        """Name a row for messages."""

    def arrow(self, first: int, stop: int) -> pa.Table:
        """Return some of the rows as Arrow has them."""

    def nested(self, first: int, stop: int) -> dict[str, list[Any]]:
        """Return some of the rows of conversations column by column, checked."""

    def not_utf8(self, row: int) -> InputError:
        """Make the error for a row whose text is no text."""


@dataclass(frozen=True)
class Survey:
    """What is known of all rows.

    Attributes:
        digest: SHA-256 of what they hold, in hex.
        text_bytes: (R,) bytes of each: UTF-8 of its text or of its messages' JSON, 8 a token id.
        obeys: What rows say of themselves: `messages`, `documents`, both or neither.
    """

    digest: str
    text_bytes: I64
    obeys: tuple[str, ...]


def survey(rows: Rows) -> Survey:
    """Read all rows once.

    Raises:
        InputError: A text is not UTF-8, or a conversation is not one; names the first such row.
    """
    surveying = Surveying(rows)
    sizes = np.concatenate([*surveying.sizes()])
    return Survey(surveying.digest, sizes, surveying.obeys)


class Surveying:
    """Reads all rows once. What that tells is known when all sizes were taken."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._said = rows, set[str]()
        self._parts = [(hashlib.sha256(), hashlib.sha256()) for _ in rows.columns]

    def sizes(self) -> Iterator[I64]:
        """Yield the bytes of each row, some rows a time.

        Raises:
            InputError: As for :func:`survey`.
        """
        with progress(len(self._rows), "read the dataset", "rows") as shown:
            for columns, said in _encoded(self._rows):
                self._said |= said
                lengths = [as_bytes.lengths_of(column) for column in columns]
                for column, length, hashes in zip(columns, lengths, self._parts, strict=True):
                    of_lengths, of_bytes = hashes
                    of_lengths.update(length.astype("<i8").tobytes())
                    for chunk in column.chunks:
                        of_bytes.update(as_bytes.content_of(chunk))
                sizes = np.sum(lengths, axis=0)
                yield sizes
                shown.update(len(sizes))

    @property
    def digest(self) -> str:
        """SHA-256 of what the rows hold, in hex."""
        rows = self._rows
        hashes = [[part.hexdigest() for part in pair] for pair in self._parts]
        whole: list[Any] = [rows.kind, len(rows), hashes]
        if rows.kind in BESIDE or rows.private is not None:
            whole.append(list(rows.columns))  # which of the possible columns these are
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    @property
    def obeys(self) -> tuple[str, ...]:
        """What rows say of themselves."""
        return tuple(sorted(self._said))


def _encoded(rows: Rows) -> Iterator[tuple[list[pa.ChunkedArray], set[str]]]:
    """Yield (the used columns as bytes without nulls, what rows say), some rows a time."""
    encode = {"conversation": _of_conversations, "tokens": _of_tokens}.get(rows.kind, _of_texts)
    for first in range(0, len(rows), _BATCH_ROWS):
        yield encode(rows, first, min(first + _BATCH_ROWS, len(rows)))


def _of_conversations(rows: Rows, first: int, stop: int) -> tuple[list[pa.ChunkedArray], set[str]]:
    columns = rows.nested(first, stop)
    encoded = [
        as_bytes.of_values(columns[name], lambda i: rows.where(first + i)) for name in rows.columns
    ]
    messages = (m for name in rows.message_columns for talk in columns[name] for m in talk or ())
    is_said = any(key in message for message in messages for key in SAYS)
    return encoded, {MESSAGES} if is_said else set()


def _of_tokens(rows: Rows, first: int, stop: int) -> tuple[list[pa.ChunkedArray], set[str]]:
    table = rows.arrow(first, stop)
    encoded = [as_bytes.of_integers(table.column(name)) for name in rows.columns]
    if "attention_mask" not in rows.columns:
        return encoded, set()
    masks = encoded[rows.columns.index("attention_mask")]
    is_packed = any(
        begins_of(np.frombuffer(mask, "<i8")).sum() > 1 for mask in masks.to_pylist() if mask
    )
    return encoded, {DOCUMENTS} if is_packed else set()


def _of_texts(rows: Rows, first: int, stop: int) -> tuple[list[pa.ChunkedArray], set[str]]:
    table = rows.arrow(first, stop)
    encoded = [as_bytes.of_text(table.column(name)) for name in rows.columns]
    for column in encoded:
        _check_utf8(rows, first, column)
    return encoded, set()


def _check_utf8(rows: Rows, first: int, texts: pa.ChunkedArray) -> None:
    try:
        texts.cast(pa.large_string())  # Arrow checks the text here
    except pa.ArrowInvalid:
        for i, text in enumerate(texts):
            if not _is_utf8(text.as_py()):
                raise rows.not_utf8(first + i) from None
        raise


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
