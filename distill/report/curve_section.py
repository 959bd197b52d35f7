"""Make the part of the page with the curves: those that can be compared first, the others folded.

Cross-entropy means the same for every student; a loss of its own does not, nor does a sum with one
in it. What was logged once or twice is no curve, and has a line in a table of last values.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from distill.report.curve_figures import curves
from distill.report.figures import colour
from distill.report.history import STATE_FILE, Curve, Point, together
from distill.report.metrics import shown_name, with_minus
from logitstore.console.html_document import clipped_text, figure

_MOST_FIGURES, _POINTS, _ALL_POINTS, _LEAST_POINTS = 10, 160, 24_000, 3
#: These mean the same for every contender.
_ALIKE = ("eval_ce_loss", "ce_loss")
_LABELS = {"ce_loss": "cross-entropy", "kd_loss": "distillation, weighted", "loss": "whole loss"}

Contenders = Sequence[Mapping[str, Any]]
#: The curves of each contender's runs, by name.
Read = Sequence[Sequence[Mapping[str, Curve]]]


class Section(NamedTuple):
    """The part of the page, as HTML, and the numbers that its script reads, a figure each."""

    html: str
    numbers: list[dict[str, Any]]


def section(contenders: Contenders, read: Read) -> Section:
    """Draw the curves.

    Args:
        contenders: Of the comparison.
        read: What `history.read_curves` found of their runs.
    """
    names = sorted({name for runs in read for own in runs for name in own}, key=_rank)
    if not names:
        none = f"None: no {STATE_FILE} with losses beside the results."
        return Section(f'<p class="none">{none}</p>', [])
    shown = names[:_MOST_FIGURES]
    most = max(8, min(_POINTS, _ALL_POINTS // (len(shown) * len(contenders))))
    merged = {name: together(_of(read, name), most) for name in shown}
    drawable = {
        name: lines for name, lines in merged.items() if max(map(len, lines)) >= _LEAST_POINTS
    }
    alike = [name for name in drawable if name in _ALIKE] or list(drawable)[:1]
    others = [name for name in drawable if name not in alike]
    numbers: list[dict[str, Any]] = []
    parts = [_HINT] if drawable else []
    parts.append(_figures(contenders, drawable, alike, numbers))
    if others:
        parts.append(
            f"<details><summary>Losses of their own ({len(others)})</summary>"
            '<p class="dim">Each student minimises another sum, so that their heights cannot be '
            f"compared; how they fall can.</p>{_figures(contenders, drawable, others, numbers)}"
            "</details>"
        )
    parts.append(_last_values(contenders, read, shown))
    return Section("\n".join(filter(None, parts)), numbers)


_HINT = (
    '<p class="dim">Of several seeds the mean, in a band from the least to the most. Point at a '
    'step or tap it<span class="keys">; <kbd>←</kbd> <kbd>→</kbd> go from step to step</span>.</p>'
)


def _of(read: Read, name: str) -> list[list[Curve]]:
    return [[own[name] for own in runs if name in own] for runs in read]


def _figures(
    contenders: Contenders,
    drawable: Mapping[str, Sequence[Sequence[Point]]],
    names: Sequence[str],
    numbers: list[dict[str, Any]],
) -> str:
    """Draw these figures, and add their numbers to those of the page."""
    drawn = []
    for name in names:
        title, lines = _label(name), drawable[name]
        picture = curves(f"{title} by step", lines)
        note = f'<span class="axis-note">{escape(picture.note)}</span>' if picture.note else ""
        caption = f'<span class="readout">by step</span>{_key(contenders, lines)}{note}'
        drawn.append(figure(title, picture.picture, caption, kind="curves", at=len(numbers)))
        numbers.append(picture.numbers)
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _key(contenders: Contenders, lines: Sequence[Sequence[Point]]) -> str:
    """Make a key of the contenders with a line, with room for the number under the pointer."""
    items = (
        f'<dt class="name {colour(i)}">{escape(shown_name(contender["name"]))}</dt><dd></dd>'
        for i, (contender, line) in enumerate(zip(contenders, lines, strict=True))
        if line
    )
    return f'<dl class="values">{"".join(items)}</dl>'


def _last_values(contenders: Contenders, read: Read, names: Sequence[str]) -> str:
    """Make a folded table of the last value of each loss, with the step it is from."""
    columns = "".join(
        f'<th scope="col" class="name {colour(i)}">{escape(shown_name(c["name"]))}</th>'
        for i, c in enumerate(contenders)
    )
    lines = []
    for name in names:
        cells = "".join(f"<td>{_last(runs)}</td>" for runs in _of(read, name))
        lines.append(f'<tr><th scope="row">{escape(_label(name))}</th>{cells}</tr>')
    return (
        "<details><summary>Last values, as a table</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="last values"><table><thead>'
        f'<tr><th scope="col">logged</th>{columns}</tr></thead><tbody>{"".join(lines)}</tbody>'
        "</table></div></details>"
    )


def _last(runs: Sequence[Curve]) -> str:
    """Write the mean of the last values of some runs, and the step or steps they are from."""
    if not runs:
        return ""
    steps = sorted({curve[-1][0] for curve in runs})
    mean = sum(curve[-1][1] for curve in runs) / len(runs)
    at = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    return f'{with_minus(f"{mean:.5g}")} <small class="dim">step {at}</small>'


def _rank(name: str) -> tuple[int, str]:
    first = (*_ALIKE, "eval_loss", "loss")
    return (first.index(name) if name in first else len(first), name)


def _label(name: str) -> str:
    """Name a curve for people: `eval_ce_loss` -> `Held-out: cross-entropy`."""
    held_out = name.startswith("eval_")
    own = name.removeprefix("eval_")
    label = _LABELS.get(own, own.removesuffix("_loss").replace("_", " "))
    return clipped_text(f"{'Held-out' if held_out else 'Training'}: {label}", 60)
