"""Draw the figures of a page as inline SVG: bars and curves, coloured by classes of its style.

A figure is 340 units wide, about as wide as a phone, and has a label that says what it shows.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, _LINE = 340, 20
_LETTER, _RIGHT = 6.6, 56  # a letter's approximate width; room for the number after a bar


class Frame(NamedTuple):
    """The rectangle where curves are drawn: its four sides, and the height of the figure."""

    left: float = 44
    right: float = WIDTH - 12
    top: float = 12
    bottom: float = 156
    height: float = 190

    def x(self, share: float) -> float:
        """Map a share, 0 at the left and 1 at the right, to a coordinate."""
        return self.left + (self.right - self.left) * share

    def y(self, share: float) -> float:
        """Map a share, 0 at the bottom and 1 at the top, to a coordinate."""
        return self.bottom - (self.bottom - self.top) * share


FRAME = Frame()
#: A place on an axis, from 0 to 1, and the text that stands there.
Tick = tuple[float, str]


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Draw horizontal bars.

    Args:
        rows: For each bar: its name, its length (the longest fills the figure), and its number.
        label: What the figure shows, for screen readers.
    """
    most = max((length for _, length, _ in rows), default=0) or 1
    left = 14 + _LETTER * max((len(name) for name, _, _ in rows), default=0)
    room, height = WIDTH - left - _RIGHT, _LINE * len(rows)
    drawn = []
    for i, (name, length, number) in enumerate(rows):
        y, wide = i * _LINE, room * length / most
        drawn.append(
            f'<text x="{left - 8:.1f}" y="{y + 14}" class="end">{escape(name)}</text>'
            f'<rect x="{left:.1f}" y="{y + 4}" width="{wide:.2f}" height="{_LINE - 7}" rx="2" '
            f'class="bar"/><text x="{left + wide + 6:.2f}" y="{y + 14}">{escape(number)}</text>'
        )
    return svg("".join(drawn), height, label)


def histogram(found: dict[str, Any]) -> str:
    """Draw one of `scalars.histograms`, from its first bin that is not empty to its last."""
    counts, edges, total = found["counts"], found["edges"], sum(found["counts"])
    if not total:
        return '<p class="none">not known</p>'
    held = [i for i, count in enumerate(counts) if count]
    rows = []
    for i in range(held[0], held[-1] + 1):
        is_last = i + 1 == len(edges)
        name = f"{edges[i]:g} and more" if is_last else f"{edges[i]:g}\N{EN DASH}{edges[i + 1]:g}"
        if found["label"].startswith("tail"):  # a share of all probability
            name = f"{100 * edges[i]:g}" + (" % and more" if is_last else "")
            name += "" if is_last else f"\N{EN DASH}{100 * edges[i + 1]:g} %"
        if found["label"].startswith("entries") and not is_last:  # whole numbers
            top = edges[i + 1] - 1
            name = f"{edges[i]:g}" if top == edges[i] else f"{edges[i]:g}\N{EN DASH}{top:g}"
        rows.append((name, counts[i] / total, f"{counts[i] / total:.1%}"))
    shares = ", ".join(f"{name}: {share}" for name, _, share in rows)
    return bars(rows, f"{found['label']}: {shares}")


def curve(ks: Sequence[int], lines: dict[str, Sequence[float]], top: float, label: str) -> str:
    """Draw curves over k on a logarithmic axis.

    Args:
        ks: Rising values, drawn at equal distances.
        lines: For each curve its class (of the style sheet) and its values.
        top: The largest value of the axis, which begins at 0.
        label: What the figure shows, for screen readers.
    """
    xs = [(i + 0.5) / len(ks) for i in range(len(ks))]
    shares = (0, 0.25, 0.5, 0.75, 1)
    x_ticks = [(x, str(k)) for x, k in zip(xs, ks, strict=True)]
    drawn = [axes(x_ticks, [(share, f"{top * share:.3g}") for share in shares], "k")]
    for name, values in lines.items():
        points = [(FRAME.x(x), FRAME.y(min(v / top, 1))) for x, v in zip(xs, values, strict=True)]
        drawn.append(polyline(points, f"curve {name}"))
        drawn += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot {name}"><title>k = {k}: '
            f"{value:.4f}</title></circle>"
            for k, value, (x, y) in zip(ks, values, points, strict=True)
        ]
    return svg("".join(drawn), FRAME.height, label)


def axes(x_ticks: Iterable[Tick], y_ticks: Iterable[Tick], x_name: str) -> str:
    """Draw a grid line for each tick of y, and the labels of both axes."""
    drawn = [
        f'<line x1="{FRAME.left}" y1="{FRAME.y(share):.1f}" x2="{FRAME.right}" '
        f'y2="{FRAME.y(share):.1f}" class="grid"/><text x="{FRAME.left - 6}" '
        f'y="{FRAME.y(share) + 4:.1f}" class="end">{escape(text)}</text>'
        for share, text in y_ticks
    ]
    drawn += [
        f'<text x="{FRAME.x(share):.1f}" y="{FRAME.height - 18}" '
        f'class="{"end" if share > 0.97 else "middle"}">{escape(text)}</text>'
        for share, text in x_ticks
    ]
    drawn.append(
        f'<text x="{FRAME.x(0.5)}" y="{FRAME.height - 3}" class="middle dim">{escape(x_name)}'
        "</text>"
    )
    return "".join(drawn)


def polyline(points: Iterable[tuple[float, float]], classes: str) -> str:
    """Draw a line through points of the figure."""
    listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{listed}" class="{classes}"/>'


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from `low` to `high` for the ticks of an axis: at most `most` steps."""
    step = axis_top((high - low) / most)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def axis_top(value: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `value`."""
    step = 1e-6
    while True:
        for factor in (1, 2, 5):
            if step * factor >= value * (1 - 1e-9):
                return step * factor
        step *= 10


def svg(inside: str, height: float, label: str) -> str:
    """Wrap a drawing in an SVG element of this height, with a label for screen readers."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg>"
    )
