"""Draw a curve of all contenders by step, whole where that leaves the end readable.

Losses fall from far above at the start of a run. Where the whole of it would press what comes after
the first tenth into a strip, the axis is logarithmic; where that does not help either, it ends at
the most of what comes after, and what lies above is marked at its edge with the value it comes
from. Which of the three a figure has is said below it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from distill.report.figures import colour, widened
from distill.report.history import Point
from distill.report.metrics import with_minus
from logitstore.console.svg import FRAME, Tick, axes, polyline, svg, ticks

#: What comes after the start of a run has this share of the height at least.
_ROOM = 0.15
_START = 0.1  # of a run


class Axis(NamedTuple):
    """The range of an axis, and how values are placed on it.

    Attributes:
        low: The least value.
        high: The most.
        kind: ``whole``, ``logarithmic`` or ``clipped``.
    """

    low: float
    high: float
    kind: str

    def share(self, value: float) -> float:
        """Place a value, 0 at the bottom and 1 at the top; what lies outside at the edge."""
        scale: Callable[[float], float] = math.log if self.kind == "logarithmic" else float
        value = min(max(value, self.low), self.high)
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


class Drawn(NamedTuple):
    """A figure of curves, what is said below it, and what the page's script needs of its numbers.

    Attributes:
        picture: SVG.
        note: How its axis is to be read; "" for an ordinary one.
        numbers: ``right``, the last step; ``lines``, of each contender its points.
    """

    picture: str
    note: str
    numbers: dict[str, Any]


def curves(label: str, lines: Sequence[Sequence[Point]]) -> Drawn:
    """Draw a curve of each contender by step, with a band from the least to the most of its runs.

    Args:
        label: What the figure shows, for those who cannot see it.
        lines: Of each contender, in their order; empty where it has no such curve.
    """
    last = max((points[-1].step for points in lines if points), default=0) or 1
    axis = axis_of(lines, last)

    def place(step: float, value: float) -> tuple[float, float]:
        return FRAME.x(step / last), FRAME.y(axis.share(value))

    x_ticks: list[Tick] = [(step / last, f"{step:g}") for step in ticks(0, last, 5)]
    drawn = [axes(x_ticks, _y_ticks(axis), "step")]
    for i, points in enumerate(lines):
        if any(point.least < point.most for point in points):
            upper = [place(point.step, point.most) for point in points]
            lower = [place(point.step, point.least) for point in points]
            outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])
            drawn.append(f'<polygon points="{outline}" class="band {colour(i)}"/>')
    for i, points in enumerate(lines):
        means = [place(*at) for at in _inside(points, axis.high)]
        if len(means) == 1:
            x, y = means[0]
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="seed {colour(i)}"/>')
        elif means:
            drawn.append(polyline(means, f"line {colour(i)}"))
        if points and points[0].mean > axis.high and means:
            drawn.append(_mark(*means[0], i))
    drawn.append(
        f'<line x1="{FRAME.right}" y1="{FRAME.top}" x2="{FRAME.right}" y2="{FRAME.bottom}" '
        'class="cursor"/>'
    )
    numbers = {"right": last, "lines": [[_rounded(point) for point in line] for line in lines]}
    return Drawn(svg("".join(drawn), FRAME.height, label), _note(axis, lines), numbers)


def axis_of(lines: Sequence[Sequence[Point]], last: int) -> Axis:
    """Choose the axis: whole, logarithmic or clipped, as the head of this file says."""
    every = [point for points in lines for point in points]
    low = min((point.least for point in every), default=0.0)
    high = max((point.most for point in every), default=1.0)
    late = max((p.most for p in every if p.step > last * _START), default=high)
    low_wide, high_wide = widened(low, high)
    whole = Axis(*_with_room(low_wide, high_wide), "whole")
    if whole.share(late) >= _ROOM:
        return whole
    if low > 0:
        logarithmic = Axis(low / 1.02, high * 1.02, "logarithmic")
        if logarithmic.share(late) >= _ROOM:
            return logarithmic
    return Axis(*_with_room(*widened(low, late)), "clipped")


def _with_room(low: float, high: float) -> tuple[float, float]:
    room = (high - low) / 20
    return low - room, high + room


def _y_ticks(axis: Axis) -> list[Tick]:
    if axis.kind != "logarithmic":
        return [
            (axis.share(value), with_minus(f"{value:.5g}"))
            for value in ticks(axis.low, axis.high, 5)
        ]
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    values = [f * 10.0**power for power in powers for f in (1, 2, 5)]
    held = [value for value in values if axis.low <= value <= axis.high]
    return [
        (axis.share(value), with_minus(f"{value:.4g}")) for value in held[:: -(-len(held) // 6)]
    ]


def _inside(points: Sequence[Point], high: float) -> list[tuple[float, float]]:
    """List step and mean of each point, from where the curve comes down to the top of the axis."""
    means = [(float(point.step), point.mean) for point in points]
    above = 0
    while above < len(means) - 1 and means[above][1] > high:
        above += 1
    if not above or means[above][1] > high:
        return means
    (step, value), (after, below) = means[above - 1], means[above]
    crossing = step + (after - step) * (value - high) / (value - below)
    return [(crossing, high), *means[above:]]


def _mark(x: float, y: float, contender: int) -> str:
    """Draw an arrow where a curve comes from above the axis."""
    tip = f"{x:.1f},{y - 9:.1f} {x - 5:.1f},{y - 1:.1f} {x + 5:.1f},{y - 1:.1f}"
    return f'<polygon points="{tip}" class="above {colour(contender)}"/>'


def _note(axis: Axis, lines: Sequence[Sequence[Point]]) -> str:
    most = max((point.most for points in lines for point in points), default=0.0)
    least = min((point.least for points in lines for point in points), default=0.0)
    if axis.kind == "clipped":
        return f"▲ comes from above the figure, where it begins: from up to {most:.4g}."
    if axis.kind == "logarithmic":
        return "The axis is logarithmic."
    if widened(least, most) != (least, most):
        return "All of it lies within 1 %: the axis is wider."
    return ""


def _rounded(point: Point) -> list[float]:
    """Round a point to six digits, more than anybody reads."""
    *at, mean, least, most = point
    return [*at, *(float(f"{v:.6g}") if math.isfinite(v) else 0.0 for v in (mean, least, most))]
