"""Look for special tokens that stand by name in a text: a tokenizer reads them as what they name.

In `text` and in prompts and completions a chat template has perhaps written them already; in what a
message says, they end its turn in the middle.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from logitstore.rows import arrow_text as as_bytes
from logitstore.rows.dataset import Rows
from logitstore.rows.renderer import Renderer
from logitstore.text.parse_special import SpecialNames

log = logging.getLogger(__name__)

_BATCH_ROWS = 10_000
_WRITTEN = (
    "%s: %s of %s rows hold %s special tokens of the teacher's tokenizer as text, such as "
    "%s, as if a chat template had written them. A BOS comes before it once more, and a "
    "student of another tokenizer learns to spell them. Read them as tokens with "
    "--parse-special, or give `messages`."
)
_SAID = (
    "%s: in %s of %s rows messages say %s special tokens of the teacher's tokenizer, such as %s. "
    "The teacher does not read them as text, and where an answer says one, a student learns to say "
    "it there: to stop, if it is an end. Spell them otherwise, or drop these rows."
)


class _Found(NamedTuple):
    """Rows with such names, all names in them, and one of these."""

    rows: int = 0
    names: int = 0
    example: str = ""

    def with_counts(self, counts: list[int], example: str) -> _Found:
        """Add the names in some rows."""
        some = sum(count > 0 for count in counts)
        return _Found(self.rows + some, self.names + sum(counts), self.example or example)


def warn_of_special(rows: Rows, render: Renderer) -> None:
    """Warn where texts or messages hold names of special tokens that nobody asked to be read so."""
    if rows.kind not in ("text", "prompt_completion", "conversation") or render.special is not None:
        return
    pattern = SpecialNames(render.tokenizer).pattern
    if not pattern:
        return
    are_messages = rows.kind == "conversation"
    found = (_in_messages if are_messages else _in_texts)(rows, pattern)
    if found.rows:
        said = _SAID if are_messages else _WRITTEN
        counts = (f"{n:,}" for n in (found.rows, len(rows), found.names))
        log.warning(said, rows.name, *counts, found.example)


def _in_texts(rows: Rows, pattern: str) -> _Found:
    found = _Found()
    for first in range(0, len(rows), _BATCH_ROWS):
        table = rows.arrow(first, min(first + _BATCH_ROWS, len(rows)))
        counts, example = [0] * len(table), found.example
        for column in rows.columns:
            texts = as_bytes.of_text(table.column(column))
            in_column = pc.count_substring_regex(texts, pattern).to_pylist()
            counts = [a + b for a, b in zip(counts, in_column, strict=True)]
            if not example and any(in_column):
                example = _first(texts.filter(pc.match_substring_regex(texts, pattern)), pattern)
        found = found.with_counts(counts, example)
    return found


def _first(texts: pa.ChunkedArray, pattern: str) -> str:
    match = re.search(pattern, texts[0].as_py().decode())
    return match[0] if match else ""


def _in_messages(rows: Rows, pattern: str) -> _Found:
    """Count in all that messages say; only batches that may have some are read as Python's."""
    search, found = re.compile(pattern), _Found()
    for first in range(0, len(rows), _BATCH_ROWS):
        stop = min(first + _BATCH_ROWS, len(rows))
        table = rows.arrow(first, stop)
        if not any(_may_have(table.column(c), pattern) for c in rows.message_columns):
            continue
        columns = rows.nested(first, stop)
        talks = zip(*(columns[name] for name in rows.message_columns), strict=True)
        names = [[n for text in _texts(talk) for n in search.findall(text)] for talk in talks]
        found = found.with_counts(list(map(len, names)), next((n[0] for n in names if n), ""))
    return found


def _may_have(column: pa.ChunkedArray | pa.Array, pattern: str) -> bool:
    """Tell whether a string in a nested column has a name; true where that is not to be seen.

    JSON in a string may spell letters that are not ASCII by their numbers.
    """
    if as_bytes.is_text(column.type):
        if not pattern.isascii():
            return True
        return bool(pc.any(pc.match_substring_regex(as_bytes.of_text(column), pattern)).as_py())
    if as_bytes.is_list(column.type):
        return _may_have(pc.list_flatten(column), pattern)
    if pa.types.is_struct(column.type):
        fields = range(column.type.num_fields)
        return any(_may_have(pc.struct_field(column, [i]), pattern) for i in fields)
    return not pa.types.is_primitive(column.type)


def _texts(value: Any) -> Iterator[str]:
    """List the strings in a nested value, but for the names of keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
