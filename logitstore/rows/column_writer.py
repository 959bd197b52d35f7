"""Write one column of a file's rows to an Arrow file, in the shape that its first value has.

    text        strings
    json        any list or object, as JSON text: exactly what the file has
    integers    lists of 64-bit numbers

A value of another shape makes the column flawed: it is not written any further, and why is said to
whoever wants to read it, and to nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from logitstore.rows.files import File
from logitstore.rows.json_rows import named
from logitstore.text.strict_json import encode, flaw_of, trouble

TEXT, JSON, INTEGERS = "text", "json", "integers"
#: What each shape is called in messages.
SHAPES = {TEXT: "text", JSON: "a list or an object", INTEGERS: "a list of integers"}
_ARROW = {TEXT: pa.large_string(), JSON: pa.large_string(), INTEGERS: pa.large_list(pa.int64())}
_NULLS_AT_ONCE = 100_000
_ABSENT = object()

#: A file and the number of a line in it.
Place = tuple[File, int]


class Column(NamedTuple):
    """A column of files.

    Attributes:
        shape: `text`, `json` or `integers`; None: no row has a value.
        flaw: Why it cannot be read, with file and line; None: it can.
        absent: The first row, by file and line, that lacks its key; None: none does. (A null is
            no lack.)
    """

    shape: str | None
    flaw: str | None = None
    absent: str | None = None


class ColumnWriter:
    """Writes one column, a batch of rows at a time.

    Args:
        name: Its key.
        shape: The shape that it must have; None: that of its first value, text or JSON.
        file: Where it is written to.
        rows_before: The rows that were written before it first came.
        first: The place of the first row of all.
    """

    def __init__(
        self, name: str, shape: str | None, file: Path, rows_before: int, first: Place
    ) -> None:
        self._name, self._wanted, self._file = name, shape, file
        self._shape: str | None = None
        self._flaw: str | None = None
        self._absent = _said(first) if rows_before else None
        self._nulls = rows_before  # rows that are still to be written as nulls
        self._values: list[Any] = []
        self._sink: Any = None

    def add(self, index: int, value: Any, place: Place, *, is_suspect: bool) -> int:
        """Take a value for row `index` of the batch; return about how many characters it has."""
        if self._flaw is not None:
            return 0
        self._values += [_ABSENT] * (index - len(self._values))
        if value is None:
            self._values.append(None)
            return 0
        shape = self._shape_of(value)
        expected = self._shape or self._wanted
        if shape is None or expected not in (None, shape):
            wanted = SHAPES[expected] if expected else "text or a list of messages"
            before = " as in the rows before" if self._shape and not self._wanted else ""
            self.reject(place, f"{self._name!r} is {named(value)}, expected {wanted}{before}")
            return 0
        self._shape = shape
        if shape == JSON:
            return self._add_json(value, place, is_suspect=is_suspect)
        self._values.append(value)
        return len(value)

    def reject(self, place: Place, what: str) -> None:
        """Note why the column cannot be read; the first reason stays."""
        self._flaw = self._flaw or f"{_said(place)}: {what}"
        self._values = []

    def flush(self, places: Sequence[Place]) -> None:
        """Write the batch, which has a row at each of the places."""
        values, self._values = self._values, []
        if self._flaw is not None:
            return
        values += [_ABSENT] * (len(places) - len(values))
        if _ABSENT in values:
            self._absent = self._absent or _said(places[values.index(_ABSENT)])
            values = [None if value is _ABSENT else value for value in values]
        if self._shape is None:
            self._nulls += len(values)
        elif (array := self._array(values, places)) is not None:
            self._write(array, _ARROW[self._shape])

    def close(self) -> Column:
        """Finish the file."""
        if self._sink is not None:
            self._sink.close()
        return Column(self._shape, self._flaw, self._absent)

    def _shape_of(self, value: Any) -> str | None:
        if isinstance(value, str):
            # JSON in a string is decoded where a column can hold nothing but JSON.
            return JSON if self._wanted == JSON else TEXT
        if isinstance(value, list):
            return INTEGERS if self._wanted == INTEGERS else JSON
        return JSON if isinstance(value, dict) else None

    def _add_json(self, value: Any, place: Place, *, is_suspect: bool) -> int:
        flaw = flaw_of(value) if is_suspect else None
        text = ""
        if flaw is None:
            try:
                text = encode(value)
            except (RecursionError, TypeError, ValueError) as error:
                flaw = trouble(error)
        if flaw is not None:
            self.reject(place, f"{self._name!r} {flaw}")
            return 0
        self._values.append(text)
        return len(text)

    def _array(self, values: list[Any], places: Sequence[Place]) -> pa.Array | None:
        """Make an Arrow array; None where a value makes the column flawed."""
        make = _integers if self._shape == INTEGERS else _strings
        try:
            return make(values)
        except (UnicodeEncodeError, ValueError, OverflowError, TypeError):
            pass
        arrays = []
        for value, place in zip(values, places, strict=True):
            try:
                arrays.append(make([value]))
            except UnicodeEncodeError:
                self.reject(
                    place,
                    f"{self._name!r} holds half of a surrogate pair (\\ud800 to \\udfff alone), "
                    "which no UTF-8 text can hold",
                )
                return None
            except (ValueError, OverflowError, TypeError):
                self.reject(place, f"{self._name!r} holds something other than integers of 64 bits")
                return None
        return pa.concat_arrays(arrays)  # truth values beside numbers

    def _write(self, array: pa.Array, dtype: pa.DataType) -> None:
        if self._sink is None:
            self._sink = pa.ipc.new_stream(str(self._file), pa.schema([("values", dtype)]))
            while self._nulls:
                count = min(self._nulls, _NULLS_AT_ONCE)
                self._sink.write_batch(pa.record_batch([pa.nulls(count, dtype)], names=["values"]))
                self._nulls -= count
        self._sink.write_batch(pa.record_batch([array], names=["values"]))


def _strings(values: list[Any]) -> pa.Array:
    return pa.array(values, pa.large_string())


def _integers(values: list[Any]) -> pa.Array:
    """Make lists of integers.

    Raises:
        ValueError: There are other values; a number with a point is one, even `1.0`.
    """
    found = pa.array(values)
    inner = found.type.value_type if pa.types.is_list(found.type) else found.type
    is_known = pa.types.is_integer(inner) or pa.types.is_boolean(inner) or pa.types.is_null(inner)
    if not is_known:
        raise ValueError(f"found {found.type}")
    return found.cast(_ARROW[INTEGERS])


def _said(place: Place) -> str:
    return f"{place[0].name}: line {place[1]:,}"
