"""Figures of the comparison: a metric of all contenders, and a curve of all contenders.

A contender has one colour on the whole page, by its place among them. Both figures are as wide as
those of a store's report, about a phone.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from distill.report.metrics import Metric, is_cost, shown_name
from logitstore.console.svg import FRAME, WIDTH, Tick, axes, polyline, svg, ticks
from logitstore.console.terminal import clipped

_ROW, _AXIS, _SIDE = 42, 20, 8
_LETTER = 7.4  # a bold letter's width, about
_COLOURS = 8  # of the style sheet; then they begin again, with dashed lines
_SHOWN_SEEDS = 16

#: (step, mean, least, most) over the runs of a contender.
Points = Sequence[tuple[int, float, float, float]]


def colour(contender: int) -> str:
    """Name the CSS classes of a contender's colour and kind of line."""
    return f"c{contender % _COLOURS} d{contender // _COLOURS % 3}"


def strips(contenders: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """Draw a metric: a line for each contender, with a dot a seed and a bar at their mean."""
    own = [contender["metrics"][metric.name] for contender in contenders]
    low = min(each["min"] for each in own if each["min"] is not None)
    high = max(each["max"] for each in own if each["max"] is not None)
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
    return svg("".join(rows) + axis, height, f"{metric.label}: {said}")


def _row(i: int, name: str, own: Mapping[str, Any], metric: Metric, low: float, high: float) -> str:
    top, span = i * _ROW, (high - low) or 1.0
    line = top + 27

    def x(value: float) -> float:
        share = (value - low) / span if high > low else 0.5
        return _SIDE + 6 + (WIDTH - 2 * _SIDE - 12) * share

    said = metric.shown(own["mean"])
    if own["difference"] is not None:
        said += f" ({metric.shown(own['difference'], '+')})"
    shown = clipped(name, int((WIDTH - 2 * _SIDE) / _LETTER) - len(said) - 1)
    drawn = [
        f'<rect x="0" y="{top}" width="{WIDTH}" height="{_ROW}" class="room"/>',
        f'<text x="{_SIDE}" y="{top + 14}" class="own">{escape(shown)}</text>',
        f'<text x="{WIDTH - _SIDE}" y="{top + 14}" class="end">{escape(said)}</text>',
        f'<line x1="{_SIDE}" y1="{line}" x2="{WIDTH - _SIDE}" y2="{line}" class="grid"/>',
    ]
    drawn += [
        f'<circle cx="{x(value):.1f}" cy="{line}" r="4.5" class="seed"/>'
        for value in own["values"].values()
    ]
    if own["mean"] is not None:
        at = x(own["mean"])
        drawn.append(
            f'<line x1="{at:.1f}" y1="{line - 8}" x2="{at:.1f}" y2="{line + 8}" class="mean"/>'
        )
    whole = escape(in_words(name, own, metric))
    return (
        f'<g class="row {colour(i)}" tabindex="0" role="img" aria-label="{whole}" '
        f'data-said="{whole}">{"".join(drawn)}</g>'
    )


def in_words(name: str, own: Mapping[str, Any], metric: Metric) -> str:
    """Say what a row has no room for: each seed, their spread, and wins over the baseline."""
    if own["mean"] is None:
        return f"{name}: not measured"
    values = list(own["values"].items())
    each = [f"{metric.shown(value)} (seed {seed[:12]})" for seed, value in values[:_SHOWN_SEEDS]]
    each += [f"{len(values) - _SHOWN_SEEDS} more"] if len(values) > _SHOWN_SEEDS else []
    said = f"{name}: {', '.join(each)}"
    if own["std"] is not None:
        said += f"; standard deviation {metric.shown(own['std'])}"
    if own["difference"] is not None and not is_cost(metric):
        said += f"; better than the baseline with {own['wins']} of {own['pairs']} seeds"
    return said


class Drawn(NamedTuple):
    """A figure of curves, and what the page's script needs to read its numbers.

    Attributes:
        picture: SVG.
        numbers: ``right``, the last step; ``lines``, of each contender its points.
    """

    picture: str
    numbers: dict[str, Any]


def curves(label: str, lines: Sequence[Points]) -> Drawn:
    """Draw a curve of each contender by step, with a band from the least to the most of its runs.

    Args:
        label: What the figure shows, for those who cannot see it.
        lines: Of each contender, in their order; empty where it has no such curve.
    """
    last = max((points[-1][0] for points in lines if points), default=0) or 1
    low, high = _range(lines, last)
    span = high - low

    def place(step: float, value: float) -> tuple[float, float]:
        share = min(max((value - low) / span, 0.0), 1.0)
        return FRAME.x(step / last), FRAME.y(share)

    x_ticks: list[Tick] = [(step / last, f"{step:g}") for step in ticks(0, last, 5)]
    y_ticks = [((value - low) / span, f"{value:.4g}") for value in ticks(low, high, 5)]
    drawn = [axes(x_ticks, y_ticks, "step")]
    for i, points in enumerate(lines):
        if any(least < most for _, _, least, most in points):
            inside = [point for point in points if point[1] <= high]
            upper = [place(step, most) for step, _, _, most in inside]
            lower = [place(step, least) for step, _, least, _ in inside]
            outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])
            drawn.append(f'<polygon points="{outline}" class="band {colour(i)}"/>')
    for i, points in enumerate(lines):
        means = [place(step, mean) for step, mean in _from(points, high)]
        if len(means) == 1:
            x, y = means[0]
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="seed {colour(i)}"/>')
        elif means:
            drawn.append(polyline(means, f"line {colour(i)}"))
    drawn.append(
        f'<line x1="{FRAME.right}" y1="{FRAME.top}" x2="{FRAME.right}" y2="{FRAME.bottom}" '
        'class="cursor"/>'
    )
    numbers = {"right": last, "lines": [[_rounded(point) for point in line] for line in lines]}
    return Drawn(svg("".join(drawn), FRAME.height, label), numbers)


def _range(lines: Sequence[Points], last: int) -> tuple[float, float]:
    """Choose the range of the axis, from all values but the highest of the first tenth of a run.

    Losses fall from far above there, and would leave the rest no room.
    """
    every = [point for points in lines for point in points]
    late = [point for point in every if point[0] > last / 10] or every
    low = min((least for _, _, least, _ in every), default=0.0)
    high = max((most for *_, most in late), default=1.0)
    if high <= low:
        return low - (abs(low) or 1.0) / 10, low + (abs(low) or 1.0) / 10
    room = (high - low) / 20
    return low - room, high + room


def _from(points: Points, high: float) -> list[tuple[float, float]]:
    """Cut off the means by step that lie above the figure."""
    means = [(float(step), mean) for step, mean, _, _ in points]
    above = 0
    while above < len(means) - 1 and means[above][1] > high:
        above += 1
    if not above or means[above][1] > high:
        return means
    (step, value), (after, below) = means[above - 1], means[above]
    crossing = step + (after - step) * (value - high) / (value - below)
    return [(crossing, high), *means[above:]]


def _rounded(point: tuple[int, float, float, float]) -> list[float]:
    """Round a point to six digits, more than anybody reads."""
    step, *values = point
    return [step, *(float(f"{value:.6g}") if math.isfinite(value) else 0.0 for value in values)]
