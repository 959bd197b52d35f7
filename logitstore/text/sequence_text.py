"""Show one sequence in a terminal: its text, with tokens coloured by surprise, and its records."""

import json

import numpy as np

from logitstore.console.counts import counted
from logitstore.console.terminal import (
    bar,
    clipped,
    coloured,
    columns_of,
    marked_spaces,
    printable,
)
from logitstore.text.sequence_facts import SHOWN_ENTRIES, Facts
from logitstore.text.tokens_by_segment import tokens_by_segment

_AROUND = 8
_BESIDE = 3  # entries in a line of the table
_TOKEN_COLUMNS, _BAR_COLUMNS = 16, 24
#: (nats, colour, mark): a token of at least this surprise has this background, or this mark.
_SURPRISE = ((6.0, "41;97", "!!"), (3.0, "43;30", "!"), (1.0, "46;30", ""))
_DIM = "2"


def sequence_text(found: Facts, *, colour: bool = False) -> str:
    """Format a sequence: its text with marked tokens, and a line for each record.

    The result is safe to print, whatever the text of the dataset holds.
    """
    tokens = found["tokens"]
    lines = [
        (
            f"sequence {found['sequence']} · row {found['row']} part {found['part']} · "
            f"{printable(found['status'])} · {counted(len(tokens), 'record')}"
        ),
        *_body(found, colour),
        *_student_sees(found, colour),
        "",
        _legend(colour),
        _head(),
    ]
    return "\n".join([*lines, *(_line(t, token, colour) for t, token in enumerate(tokens))])


def position_text(found: Facts, position: int, *, colour: bool = False) -> str:
    """Format one record: the records around it, and the ten most probable tokens in its place."""
    tokens = found["tokens"]
    token = tokens[position]
    around = range(max(0, position - _AROUND), min(len(tokens), position + _AROUND + 1))
    lines = [
        (
            f"sequence {found['sequence']} · row {found['row']} part {found['part']} · record "
            f"{position} of {len(tokens)}"
        ),
        _head(),
        *(("> " if t == position else "  ") + _line(t, tokens[t], colour)[2:] for t in around),
        "",
        f"in its place, of {len(token['entries'])} entries:",
    ]
    for entry in token["entries"][:SHOWN_ENTRIES]:
        is_token = entry["id"] is not None and entry["id"] == token["token_id"]
        name = _name(entry) + ("   <- this one" if is_token else "")
        lines.append(f"{entry['p']:>9.4f}  {bar(entry['p'], _BAR_COLUMNS)}  {name}")
    if token["tail"] is not None:
        lines.append(f"{token['tail']:>9.4f}  {bar(token['tail'], _BAR_COLUMNS)}  (tail)")
    return "\n".join(lines)


def _name(entry: Facts) -> str:
    if entry["token"] is None:
        return "?" if entry["id"] is None else str(entry["id"])
    return printable(entry["token"]) or f"({entry['id']})"


def _body(found: Facts, colour: bool) -> list[str]:
    """Format the text, one line for each segment."""
    lines = []
    for segment, numbers in tokens_by_segment(found):
        text = "".join(_marked(found["tokens"][t], colour) for t in numbers)
        if segment is None or segment["supervised"]:
            written = segment["text"] if segment is not None else ""
            lines.append(f"  supervised: {text or printable(written)}")
        else:
            lines.append(coloured(f"  context: {printable(segment['text'])}", _DIM, colour))
    return lines


def _student_sees(found: Facts, colour: bool) -> list[str]:
    """Format what the student sees in place of the context above, a line a message or segment."""
    lines = []
    for each in found.get("student_sees", ()):
        text = each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
        lines.append(coloured(f"  student sees: {printable(text)}", _DIM, colour))
    return lines


def _marked(token: Facts, colour: bool) -> str:
    code, mark = _surprise(token["logprob"])
    text = printable(token["text"]) or "(end)"
    return coloured(text, code, True) if colour else f"⟦{text}⟧{mark}"


def _surprise(logprob: float | None) -> tuple[str, str]:
    for nats, code, mark in _SURPRISE if logprob is not None else ():
        if -logprob >= nats:  # type: ignore[operator]
            return code, mark
    return "", ""


def _legend(colour: bool) -> str:
    steps = [(f"{nats:g}", code, mark) for nats, code, mark in reversed(_SURPRISE)]
    if colour:
        shown = "  ".join(coloured(f" {nats} ", code, True) for nats, code, _ in steps)
        return f"surprise of a token, -log p in nats, from: {shown}"
    shown = ", ".join(f"{mark} from {nats}" for nats, _, mark in steps if mark)
    return f"surprise of a token, -log p in nats: {shown}"


def _head() -> str:
    return f"{'':2}{'record':>7} {'byte':>8} {'p':>7} {'entropy':>8} {'tail':>7}  token"


def _line(t: int, token: Facts, colour: bool) -> str:
    p = "?" if token["logprob"] is None else f"{np.exp(token['logprob']):.4f}"
    entropy = "?" if token["entropy"] is None else f"{token['entropy']:.3f}"
    tail = "?" if token["tail"] is None else f"{token['tail']:.4f}"
    best = "  ".join(f"{_name(e)} {e['p']:.4f}" for e in token["entries"][:_BESIDE])
    text = clipped(printable(marked_spaces(token["text"])) or "(end)", _TOKEN_COLUMNS)
    padding = " " * (_TOKEN_COLUMNS - columns_of(text))
    shown = coloured(text, _surprise(token["logprob"])[0], colour) + padding
    return (
        f"  {t:>7} {token['byte_start']:>8} {p:>7} {entropy:>8} {tail:>7}  "
        f"{shown} {'<- ' + best if best else ''}".rstrip()
    )
