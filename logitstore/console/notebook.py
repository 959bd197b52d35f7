"""Build the HTML that a notebook shows for an object; everything in it is escaped."""

from collections.abc import Mapping, Sequence
from html import escape

from logitstore.console.terminal import printable

_LEFT = "text-align: left"


def table_html(columns: Sequence[str], rows: Sequence[Sequence[str]], more: str = "") -> str:
    """Build a table; `more`, below it, says what the table leaves out."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    rest = f"<p>{escape(more)}</p>" if more else ""
    return f"<table><tr>{head}</tr>{body}</table>{rest}"


def facts_html(title: str, facts: Mapping[str, str], more: str = "") -> str:
    """Build a table of names and values below a title; `more` comes below it, preformatted.

    Everything is text, and shown without anything invisible.
    """
    lines = "".join(
        f'<tr><th style="{_LEFT}">{escape(name)}</th><td style="{_LEFT}">'
        f"{escape(printable(value))}</td></tr>"
        for name, value in facts.items()
    )
    rest = f"<pre>{escape(more)}</pre>" if more else ""
    return f"<p><b>{escape(printable(title))}</b></p><table>{lines}</table>{rest}"


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{escape(printable(cell))}</td>" for cell in row)
