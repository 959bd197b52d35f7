"""Build the HTML that a notebook shows for an object; everything in it is escaped."""

from collections.abc import Sequence
from html import escape

from logitstore.console.terminal import printable


def table_html(columns: Sequence[str], rows: Sequence[Sequence[str]], more: str = "") -> str:
    """Build a table; `more`, below it, says what the table leaves out."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    rest = f"<p>{escape(more)}</p>" if more else ""
    return f"<table><tr>{head}</tr>{body}</table>{rest}"


def text_html(text: str) -> str:
    """Build preformatted text, so that aligned lines stay aligned."""
    return f"<pre>{escape(text)}</pre>"


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{escape(printable(cell))}</td>" for cell in row)
