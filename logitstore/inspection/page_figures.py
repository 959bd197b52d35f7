"""Figures of the report page as inline SVG: bars and curves, in colours that its style names.

A figure is drawn 340 units wide, about as wide as a phone, and says in words what it shows.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

_WIDTH, _LINE = 340, 20
_LETTER, _RIGHT = 6.6, 56  # a letter's width, about; room for a figure behind its bar
_CURVE_HEIGHT, _CURVE_LEFT, _CURVE_RIGHT, _CURVE_TOP, _CURVE_BOTTOM = 190, 44, 12, 12, 34


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars.

    Args:
        rows: Of each bar its name, its length (the longest fills the figure), and its figure.
        label: What the figure shows, for those who cannot see it.
    """
    most = max((length for _, length, _ in rows), default=0) or 1
    left = 14 + _LETTER * max((len(name) for name, _, _ in rows), default=0)
    room, height = _WIDTH - left - _RIGHT, _LINE * len(rows)
    drawn = []
    for i, (name, length, said) in enumerate(rows):
        y, wide = i * _LINE, room * length / most
        drawn.append(
            f'<text x="{left - 8:.1f}" y="{y + 14}" class="end">{escape(name)}</text>'
            f'<rect x="{left:.1f}" y="{y + 4}" width="{wide:.2f}" height="{_LINE - 7}" rx="2" '
            f'class="bar"/><text x="{left + wide + 6:.2f}" y="{y + 14}">{escape(said)}</text>'
        )
    return _svg("".join(drawn), height, label)


def histogram(found: dict[str, Any]) -> str:
    """One of `scalars.histograms`, from its first to its last bin that has anything."""
    counts, edges, total = found["counts"], found["edges"], sum(found["counts"])
    if not total:
        return '<p class="none">not known</p>'
    held = [i for i, count in enumerate(counts) if count]
    rows = []
    for i in range(held[0], held[-1] + 1):
        is_last = i + 1 == len(edges)
        name = f"{edges[i]:g} and more" if is_last else f"{edges[i]:g}\N{EN DASH}{edges[i + 1]:g}"
        if found["label"].startswith("entries") and not is_last:  # whole numbers
            top = edges[i + 1] - 1
            name = f"{edges[i]:g}" if top == edges[i] else f"{edges[i]:g}\N{EN DASH}{top:g}"
        rows.append((name, counts[i] / total, f"{counts[i] / total:.1%}"))
    said = ", ".join(f"{name}: {share}" for name, _, share in rows)
    return bars(rows, f"{found['label']}: {said}")


def curve(ks: Sequence[int], lines: dict[str, Sequence[float]], top: float, label: str) -> str:
    """Curves over k, which is drawn by its logarithm.

    Args:
        ks: Rising; the steps between them are drawn alike.
        lines: Of each curve its class (of the style sheet) and its values.
        top: The largest value of the axis, which begins at 0.
        label: What the figure shows, for those who cannot see it.
    """
    wide = _WIDTH - _CURVE_LEFT - _CURVE_RIGHT
    high = _CURVE_HEIGHT - _CURVE_TOP - _CURVE_BOTTOM
    xs = [_CURVE_LEFT + wide * (i + 0.5) / len(ks) for i in range(len(ks))]
    drawn = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _CURVE_TOP + high * (1 - share)
        drawn.append(
            f'<line x1="{_CURVE_LEFT}" y1="{y}" x2="{_WIDTH - _CURVE_RIGHT}" y2="{y}" '
            f'class="grid"/><text x="{_CURVE_LEFT - 6}" y="{y + 4}" class="end">'
            f"{top * share:.3g}</text>"
        )
    drawn += [
        f'<text x="{x:.1f}" y="{_CURVE_HEIGHT - 18}" class="middle">{k}</text>'
        for k, x in zip(ks, xs, strict=True)
    ]
    drawn.append(
        f'<text x="{_CURVE_LEFT + wide / 2}" y="{_CURVE_HEIGHT - 3}" class="middle dim">k</text>'
    )
    for name, values in lines.items():
        ys = [_CURVE_TOP + high * (1 - min(value / top, 1)) for value in values]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        drawn.append(f'<polyline points="{points}" class="curve {name}"/>')
        drawn += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot {name}"><title>k = {k}: '
            f"{value:.4f}</title></circle>"
            for k, value, x, y in zip(ks, values, xs, ys, strict=True)
        ]
    return _svg("".join(drawn), _CURVE_HEIGHT, label)


def axis_top(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    step = 1e-6
    while True:
        for factor in (1, 2, 5):
            if step * factor >= value * (1 - 1e-9):
                return step * factor
        step *= 10


def _svg(inside: str, height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg>"
    )
