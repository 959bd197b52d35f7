"""Show one sequence in a notebook: its text, with tokens coloured by surprise, and a table of them.

A notebook has a style of its own, light or dark, and may drop style sheets: all style is in the
elements, a colour behind a token comes with the colour of its letters, and what is merely less
important is paler rather than grey. All text is a stranger's: escaped, and shown without anything
invisible.
"""

import math
from html import escape
from typing import Any

from logitstore.console.counts import counted
from logitstore.console.html_document import clipped_text
from logitstore.console.terminal import marked_spaces, printable
from logitstore.text.sequence_facts import Facts
from logitstore.text.tokens_by_segment import tokens_by_segment

#: (nats, background, width of the line below): of a token of at least this surprise. The line is
#: for those who cannot tell the colours apart.
SHADES = ((6.0, "#ffb3a1", 4), (3.0, "#ffe29a", 2), (1.0, "#d9ecf7", 1))
#: Of the letters on any of these, and of the line below them.
LETTERS, LINE = "#1c1e21", "#9c4423"
_MOST_TOKENS, _MOST_LINES, _TEXT, _NAME, _BESIDE = 2000, 500, 4000, 80, 3
_MONO = "font-family: ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap"
_PALE, _LEFT, _RIGHT = "opacity: .75", "text-align: left", "text-align: right; padding-left: 1em"
_COLUMNS = ("token", "p", "surprise", "entropy", "not kept", "the teacher expected")


def sequence_html(found: Facts) -> str:
    """Build the HTML of a sequence.

    Args:
        found: What `sequence_facts` returns.
    """
    return (
        f"<div><p><b>{escape(_title(found))}</b></p><p>{_legend()}</p>"
        f'<div style="overflow-wrap: anywhere; line-height: 1.9; {_MONO}">'
        f"{''.join(_body(found))}</div>{_student_sees(found)}{_table(found['tokens'])}</div>"
    )


def surprise(token: Facts) -> float | None:
    """Return -log p of a token; None where it is not known."""
    return None if token["logprob"] is None else max(0.0, -float(token["logprob"]))


def _title(found: Facts) -> str:
    tokens = found["tokens"]
    part = f", part {found['part']}" if found["part"] else ""
    said = (
        f"sequence {found['sequence']} · row {found['row']}{part} · {counted(len(tokens), 'token')}"
    )
    said += "" if found["status"] == "ok" else f" · {printable(found['status'])}"
    known = [nats for nats in map(surprise, tokens) if nats is not None and math.isfinite(nats)]
    return f"{said} · {sum(known) / len(known):.2f} nats of surprise on average" if known else said


def _legend() -> str:
    shown = " ".join(_span(f" from {nats:g} ", nats) for nats, *_ in reversed(SHADES))
    return f"surprise of a token, \N{MINUS SIGN}log p in nats: {shown}"


def _body(found: Facts) -> list[str]:
    """Build the text: context pale, tokens coloured."""
    tokens, parts, shown = found["tokens"], list[str](), 0
    for segment, numbers in tokens_by_segment(found):
        if segment is not None and not segment["supervised"]:
            text = escape(clipped_text(segment["text"], _TEXT))
            parts.append(f'<bdi style="display: block; {_PALE}">{text}</bdi>')
            continue
        kept = numbers[: _MOST_TOKENS - shown]
        parts += [_token(tokens[t]) for t in kept]
        shown += len(kept)
        if shown == _MOST_TOKENS:
            break
    more = len(tokens) - shown
    return [*parts, f" … {counted(more, 'token')} more"] if more else parts


def _token(token: Facts) -> str:
    text = clipped_text(token["text"], _NAME) or "(end)"
    nats = surprise(token)
    return _span(text, nats, title=f"p {_p(token)} · {_expected(token)}".strip(" ·"))


def _span(text: str, nats: float | None, title: str = "") -> str:
    said = "inherit; border-bottom: 1px solid rgba(128, 128, 128, .6)"
    for least, back, width in reversed(SHADES):
        if nats is not None and nats >= least:
            said = f"{LETTERS}; background: {back}; border-bottom: {width}px solid {LINE}"
    style = f"unicode-bidi: isolate; margin-right: 1px; color: {said}"
    said = f' title="{escape(title)}"' if title else ""
    return f'<span style="{style}"{said}>{escape(text)}</span>'


def _student_sees(found: Facts) -> str:
    """Say what the student sees where the teacher saw another prompt."""
    lines = [str(each) for each in found.get("student_sees", ())]
    if not lines:
        return ""
    shown = "<br>".join(escape(clipped_text(line, _TEXT)) for line in lines)
    return f"<p>The student sees instead of the context:<br>{shown}</p>"


def _table(tokens: list[Facts]) -> str:
    head = "".join(
        f'<th scope="col" style="{_LEFT if name in _COLUMNS[::5] else _RIGHT}">{name}</th>'
        for name in _COLUMNS
    )
    lines = "".join(map(_line, tokens[:_MOST_LINES]))
    more = len(tokens) - _MOST_LINES
    rest = f"<p>{counted(more, 'token')} more</p>" if more > 0 else ""
    return (
        "<details><summary>token by token</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{rest}</details>"
    )


def _line(token: Facts) -> str:
    nats = surprise(token)
    name = clipped_text(printable(marked_spaces(token["text"])), _NAME) or "(end)"
    numbers = (
        _p(token),
        "?" if nats is None else f"{nats:.3f}",
        "?" if token["entropy"] is None else f"{token['entropy']:.3f}",
        "?" if token["tail"] is None else f"{token['tail']:.4f}",
    )
    cells = "".join(f'<td style="{_RIGHT}">{number}</td>' for number in numbers)
    return (
        f'<tr><td style="{_LEFT}; {_MONO}">{_span(name, nats)}</td>{cells}'
        f'<td style="{_LEFT}; {_MONO}"><bdi>{escape(_expected(token))}</bdi></td></tr>'
    )


def _p(token: Facts) -> str:
    return "?" if token["logprob"] is None else f"{math.exp(token['logprob']):.4f}"


def _expected(token: Facts) -> str:
    return "  ".join(f"{_name(entry)} {entry['p']:.4f}" for entry in token["entries"][:_BESIDE])


def _name(entry: dict[str, Any]) -> str:
    if entry["token"] is None:
        return "?" if entry["id"] is None else f"id {entry['id']}"
    return clipped_text(printable(entry["token"]), _NAME) or f"id {entry['id']}"
