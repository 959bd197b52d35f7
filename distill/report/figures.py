"""Draw the seeds of all contenders: a line for each contender, a dot for each seed.

A contender has one colour on the whole page, by its place among them. A figure is as wide as those
of a store's report, about a phone. Its axis is never narrower than a difference that means
something: what is noise looks like noise.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from distill.report.metrics import Metric, shown_name
from logitstore.console.svg import WIDTH, svg
from logitstore.console.terminal import clipped

#: The least width of an axis, as a share of the largest value on it.
LEAST_WIDTH = 0.01
_ROW, _AXIS, _SIDE = 42, 20, 8
_LETTER = 7.4  # a bold letter's width, about
_COLOURS = 8  # of the style sheet
#: Neighbours have lines of different kinds, whole, dashed and dotted, so that what lies below one
#: is seen in its gaps; a colour that comes again has another kind than before.
_KINDS = 3


def colour(contender: int) -> str:
    """Name the CSS classes of a contender's colour and kind of line."""
    again = contender // _COLOURS
    return f"c{contender % _COLOURS} d{(contender + 2 * again) % _KINDS}"


def widened(low: float, high: float, least: float = LEAST_WIDTH) -> tuple[float, float]:
    """Widen the range of an axis around its middle, to a share of its largest value at least."""
    room = least * max(abs(low), abs(high)) - (high - low)
    if high - low <= 0 >= room:
        room = 1.0  # all values are zero
    return (low - room / 2, high + room / 2) if room > 0 else (low, high)


def strips(contenders: Sequence[Mapping[str, Any]], metric: Metric) -> tuple[str, bool]:
    """Draw a metric: a line for each contender, with a dot a seed and a bar at their mean.

    Returns:
        The drawing, and whether its axis is wider than the values need.
    """
    own = [contender["metrics"][metric.name] for contender in contenders]
    least = min(each["min"] for each in own if each["min"] is not None)
    most = max(each["max"] for each in own if each["max"] is not None)
    low, high = widened(least, most)
    rows = [
        _row(i, shown_name(contender["name"]), contender["metrics"][metric.name], metric, low, high)
        for i, contender in enumerate(contenders)
    ]
    height = _ROW * len(rows) + _AXIS
    better = "← lower is better" if metric.lower_is_better else "higher is better →"
    axis = (
        f'<text x="{_SIDE}" y="{height - 4}" class="dim">{escape(metric.shown(low))}</text>'
        f'<text x="{WIDTH / 2}" y="{height - 4}" class="middle dim">{better}</text>'
        f'<text x="{WIDTH - _SIDE}" y="{height - 4}" class="end dim">{escape(metric.shown(high))}'
        "</text>"
    )
    said = ", ".join(
        f"{shown_name(contender['name'])} {metric.shown(each['mean'])}"
        for contender, each in zip(contenders, own, strict=True)
    )
    drawing = svg("".join(rows) + axis, height, f"{metric.label}: {said}")
    return drawing, (low, high) != (least, most)


def _row(i: int, name: str, own: Mapping[str, Any], metric: Metric, low: float, high: float) -> str:
    top = i * _ROW
    line = top + 27

    def x(value: float) -> float:
        return _SIDE + 6 + (WIDTH - 2 * _SIDE - 12) * (value - low) / (high - low)

    said = "not measured" if own["mean"] is None else metric.shown(own["mean"])
    if own["difference"] is not None:
        said += f" ({metric.shown(own['difference'], '+')})"
    shown = clipped(name, int((WIDTH - 2 * _SIDE) / _LETTER) - len(said) - 1)
    drawn = [
        f'<text x="{_SIDE}" y="{top + 14}" class="own">{escape(shown)}</text>',
        f'<text x="{WIDTH - _SIDE}" y="{top + 14}" class="end">{escape(said)}</text>',
        f'<line x1="{_SIDE}" y1="{line}" x2="{WIDTH - _SIDE}" y2="{line}" class="grid"/>',
    ]
    drawn += [
        f'<circle cx="{x(value):.1f}" cy="{line}" r="4.5" class="seed"><title>seed '
        f"{escape(clipped(seed, 12))}: {metric.shown(value)}</title></circle>"
        for seed, value in own["values"].items()
    ]
    if own["mean"] is not None:
        at = x(own["mean"])
        drawn.append(
            f'<line x1="{at:.1f}" y1="{line - 8}" x2="{at:.1f}" y2="{line + 8}" class="mean"/>'
        )
    return f'<g class="{colour(i)}">{"".join(drawn)}</g>'
