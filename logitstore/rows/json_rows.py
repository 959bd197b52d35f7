"""Read the rows of JSON files, each exactly as it is written.

    .jsonl    an object a line; blank lines are passed over
    .json     a list of objects, or of texts; or objects one after the other, a line each or not

Whatever stands behind a key keeps its JSON type: a date is a text, a null is a null, a key that
first comes late is a key. (A reader that makes a table of it guesses types from the first rows,
gives every object the keys of all others, and so cannot tell a null from a missing key.)
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from logitstore.errors import InputError
from logitstore.rows.files import (
    LINES,
    File,
    Seen,
    blocks_of,
    lines_of,
    not_utf8,
    too_long,
)
from logitstore.text.strict_json import Decoder, trouble

_BLANK = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        number: The line that it begins in, from 1.
        values: What it holds, by key.
        is_suspect: Whether `strict_json.flaw_of` should look at its values.
    """

    number: int
    values: Mapping[str, Any]
    is_suspect: bool = False


def rows_of(file: File, seen: Seen | None = None) -> Iterator[Row]:
    """Read the rows of a JSON file in order.

    Args:
        file: The file.
        seen: Is told how far it was read.

    Raises:
        InputError: It is not JSON, not UTF-8, or holds something other than objects; names the
            line.
        OSError: It cannot be read.
    """
    return _rows_of_lines(file, seen) if file.kind == LINES else _Values(file, seen).rows()


def named(value: Any) -> str:
    """Name the JSON type of a value, for messages."""
    kinds = {bool: "true or false", str: "text", list: "a list", type(None): "null"}
    return "an object" if isinstance(value, dict) else kinds.get(type(value), "a number")


def _rows_of_lines(file: File, seen: Seen | None) -> Iterator[Row]:
    decoder = Decoder()
    for number, line in lines_of(file, seen):
        if not line or line.isspace():
            continue
        try:
            value, is_suspect = decoder.decode(line)
        except json.JSONDecodeError as error:
            raise _not_json(file, number, error.msg, error.colno) from None
        except (RecursionError, ValueError) as error:
            raise _troubled(file, number, error) from None
        yield _row(file, number, value, is_suspect)


def _row(file: File, number: int, value: Any, is_suspect: bool) -> Row:
    if not isinstance(value, dict):
        raise InputError(
            f"{file.name}: line {number:,} holds {named(value)}, not an object. Each line must be "
            'one object, such as {"text": "…"}.'
        )
    return Row(number, value, is_suspect)


def _not_json(file: File, number: int, why: str, column: int) -> InputError:
    return InputError(
        f"{file.name}: line {number:,} is not JSON ({why} at column {column}). "
        'Each line must be one object, such as {"text": "…"}.'
    )


def _troubled(file: File, number: int, error: Exception) -> InputError:
    return InputError(f"{file.name}: line {number:,} {trouble(error)}. Repair or drop the row.")


class _Values:
    """The values of a `.json` file, one by one: those of its list, or those that it consists of.

    No more of the file is in memory than a block and one value.
    """

    def __init__(self, file: File, seen: Seen | None) -> None:
        self._file, self._blocks = file, blocks_of(file, seen)
        self._decoder, self._utf8 = Decoder(), codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at = "", 0
        self._line, self._line_start = 1, 0  # where `_at` is; and where that line starts
        self._is_whole = False  # whether the text reaches to the end of the file

    def rows(self) -> Iterator[Row]:
        if self._next_sign() != "[":
            while self._next_sign():
                yield self._value()
            return
        self._advance(self._at + 1)
        sign = self._next_sign()
        while sign != "]":
            yield self._value(in_list=True)
            sign = self._next_sign()
            if sign == ",":
                self._advance(self._at + 1)
                self._next_sign()
            elif sign != "]":
                raise self._wrong("Expecting ',' delimiter")
        self._advance(self._at + 1)
        if self._next_sign():
            raise self._wrong("Extra data")

    def _next_sign(self) -> str:
        """Go to the next sign that is no blank; return it, or nothing at the end of the file."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._advance(blank.end() if blank else self._at)
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def _value(self, *, in_list: bool = False) -> Row:
        """Decode the value that begins here; more of the file is read until it is whole."""
        while True:
            try:
                value, stop, is_suspect = self._decoder.decode_from(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._read_on():
                    continue
                self._advance(error.pos)
                raise self._wrong(error.msg) from None
            except (RecursionError, ValueError) as error:
                raise _troubled(self._file, self._line, error) from None
            number = self._line
            self._advance(stop)
            if in_list and isinstance(value, str):
                value = {"text": value}
            return _row(self._file, number, value, is_suspect)

    def _advance(self, place: int) -> None:
        """Go on to a place of the text, counting the lines on the way."""
        lines = self._text.count("\n", self._at, place)
        if lines:
            self._line += lines
            self._line_start = self._text.rindex("\n", self._at, place) + 1
        self._at = place

    def _read_on(self) -> bool:
        """Read as much again as is there; tell whether there was more."""
        wanted = max(len(self._text) - self._at, 1)
        if wanted > self._file.most_line_bytes:
            raise too_long(self._file, self._line)
        pieces, size = [self._text[self._at :]], 0
        self._line_start -= self._at
        self._at = 0
        while size < wanted and not self._is_whole:
            block = next(self._blocks, b"")
            self._is_whole = not block
            try:
                pieces.append(self._utf8.decode(block, final=not block))
            except UnicodeDecodeError as error:
                line = self._line + sum(piece.count("\n") for piece in pieces)
                raise not_utf8(self._file, line, error) from None
            size += len(pieces[-1])
        self._text = "".join(pieces)
        return size > 0

    def _wrong(self, why: str) -> InputError:
        return _not_json(self._file, self._line, why, self._at - self._line_start + 1)
