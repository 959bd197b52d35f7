"""Format text for a terminal: control characters are escaped, colours used only where supported.

`NO_COLOR` (https://no-color.org) and pipes turn colours off; marks then replace them. Text of a
dataset is always the last thing in its line, so that right-to-left letters cannot move a number.
"""

import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import IO

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"


def has_colour(stream: IO[str] | None = None) -> bool:
    """Return whether a stream shows colours and the user wants them."""
    stream = sys.stdout if stream is None else stream
    return not os.environ.get("NO_COLOR") and stream.isatty() and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Escape what a terminal would obey: control, format and surrogate characters."""
    return "".join(
        c if unicodedata.category(c)[0] not in "CZ" or c == " " else _escaped(c) for c in text
    )


def marked_spaces(text: str) -> str:
    """Mark each space at either end of a text, so that a token shows where a word begins."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text)
    before = len(text) - len(text.lstrip(" "))
    return "␣" * before + inner + "␣" * (len(text) - before - len(inner))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align a table: the first column flush left, all others flush right.

    Args:
        rows: The cells of each row, the same number in all; a row without cells is an empty line.
    """
    widths = [max(map(columns_of, cells)) for cells in zip(*filter(None, rows), strict=True)]
    return "\n".join(
        "  ".join(
            cell + _room(cell, width) if i == 0 else _room(cell, width) + cell
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    )


def folded(rows: Sequence[Sequence[str]], columns: int = 80) -> str:
    """Align a table like :func:`aligned`; columns without room go on below, the first one again.

    Args:
        rows: The cells of each row, the same number in all; the first row is the head.
        columns: Of the terminal. A single column that is wider is not cut.
    """
    widths = [max(map(columns_of, cells)) for cells in zip(*rows, strict=True)]
    parts, room = [[0]], 0
    for i, width in enumerate(widths[1:], 1):
        if room < width + 2 and (i == 1 or len(parts[-1]) > 1):
            parts.append([0])
            room = columns - widths[0]
        parts[-1].append(i)
        room -= width + 2
    parts = [part for part in parts if len(part) > 1] or [[0]]
    return "\n\n".join(aligned([[row[i] for i in part] for row in rows]) for part in parts)


def _room(cell: str, columns: int) -> str:
    return " " * (columns - columns_of(cell))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def columns_of(text: str) -> int:
    """Count the terminal columns of a text: two for a wide letter, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1
        for c in text
    )


def clipped(text: str, columns: int) -> str:
    """Clip a text to a number of terminal columns; `…` marks what was cut."""
    if columns_of(text) <= columns:
        return text
    kept = ""
    for c in text:
        if columns_of(kept + c) > columns - 1:
            break
        kept += c
    return kept + "…"


def bar(share: float, columns: int) -> str:
    """Draw a bar whose length is `share` (0 to 1) of `columns`, in eighths of a column."""
    eighths = round(min(max(share, 0.0), 1.0) * columns * 8)
    full, rest = divmod(eighths, 8)
    return (_FULL * full + (_EIGHTHS[rest] if rest else "")).ljust(columns)


def coloured(text: str, code: str, is_on: bool) -> str:
    """Colour a text by an SGR code such as `31;1`, if colours are on."""
    return f"\x1b[{code}m{text}\x1b[0m" if is_on and code else text
