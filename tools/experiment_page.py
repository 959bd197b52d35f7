"""Make the table and the plot of BENCHMARKS.md from what `tools.experiment_quality` measured.

    python -m tools.experiment_page build/quality/results.json     (keeps it beside this file)

The page has three files from here: `experiment_quality.json`, the runs; `experiment_quality.svg`,
the plot; and `experiment_quality.md`, the conclusions, whose figures a test compares with the
table.

A student is compared with one that differs only in its loss, cross-entropy alone: it has the same
seed, and so the same weights, order of rows and dropout. (The part `k` is compared with `main`,
which has another store, and so another order of rows.) For the differences d of n seeds, the table
has the mean and the half width of Student's 95 % interval, t(n-1) std(d) / sqrt(n): for three
seeds, 2.5 standard deviations. A loss is `better` or `worse` if the interval excludes zero,
`better?` or `worse?` if it does not but all seeds agree (one in four losses without any effect
would), and `undecided` otherwise.
"""

import argparse
import html
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.report.verdict import half_width, judge

HERE = Path(__file__).parent
KEPT, PLOT, SAID = (HERE / f"experiment_quality.{ending}" for ending in ("json", "svg", "md"))

#: A description of each part, for people.
PARTS = {
    "main": "another tokenizer, random weights, little text",
    "k": "the same, from stores of fewer entries",
    "ample": "another tokenizer, random weights, ample text",
    "warm": "another tokenizer, trained weights, little text",
    "gentle": "another tokenizer, trained weights, ample text, a tenth of the learning rate",
    "same": "the teacher's tokenizer, random weights, little text",
}


class Line(NamedTuple):
    """The results of a contender in one part of the experiment, in bits per byte.

    Attributes:
        part: The part, one of `PARTS`.
        name: The name of the loss.
        values: The result of each seed.
        differences: The difference to cross-entropy for each seed; empty for cross-entropy itself.
    """

    part: str
    name: str
    values: list[float]
    differences: list[float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    @property
    def half_width(self) -> float | None:
        """Return the half width of the 95 % interval around the mean; None for a single seed."""
        return half_width(self.differences)

    @property
    def verdict(self) -> str:
        """Return `better`, `worse?` and so on, as the head of this file defines them."""
        found = judge(self.differences)
        if found.word in ("better", "worse"):
            return found.word
        word = "worse" if self.mean > 0 else "better"
        return f"{word}?" if found.agree and found.pairs > 1 else "undecided"


def lines(runs: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Collect the results of every contender, parts in the order of `PARTS`.

    Raises:
        ValueError: Students that are compared had different teachers.
    """
    teachers(runs)
    groups: dict[tuple[str, str], dict[int, float]] = {}
    for run in sorted(runs, key=lambda run: list(PARTS).index(run["part"])):
        label = run["loss"] if run["part"] != "k" else f"{run['loss']}, k = {run['k']}"
        groups.setdefault((run["part"], label), {})[run["seed"]] = run["bits_per_byte"]
    for (part, label), by_seed in groups.items():
        baseline = groups["main" if part == "k" else part, "ce"]
        differences = [value - baseline[seed] for seed, value in by_seed.items()]
        yield Line(part, label, list(by_seed.values()), differences if label != "ce" else [])


def teachers(runs: Sequence[Mapping[str, Any]]) -> dict[float, list[str]]:
    """Map the bits per byte of each teacher to the parts whose students learnt from it.

    Raises:
        ValueError: The students of a part had several teachers, or those of `k` another than
            `main`.
    """
    by_part: dict[str, set[float]] = {}
    for run in runs:
        by_part.setdefault("main" if run["part"] == "k" else run["part"], set()).add(run["teacher"])
    if any(len(each) > 1 for each in by_part.values()):
        raise ValueError(f"students of one part had several teachers: {by_part}")
    found: dict[float, list[str]] = {}
    for part in (part for part in PARTS if part in by_part):
        found.setdefault(by_part[part].pop(), []).append(PARTS[part])
    return found


def table(results: Mapping[str, Any]) -> str:
    """Format the results as a Markdown table with a heading line for each part."""
    rows = [
        "| | bits/byte | of the seeds | against `ce` | 95 % | |",
        "|---|--:|--:|--:|--:|---|",
    ]
    part = None
    for line in lines(results["runs"]):
        if line.part != part:
            part = line.part
            rows.append(f"| **{PARTS[part]}** | | | | | |")
        rows.append(f"| {' | '.join(_cells(line))} |")
    return "\n".join([*rows, "", _said_of(teachers(results["runs"]))])


def _said_of(found: Mapping[float, Sequence[str]]) -> str:
    if len(found) == 1:
        return f"The teacher: {next(iter(found)):.3f}."
    each = (f"{bits:.3f} of {'; '.join(parts)}" for bits, parts in found.items())
    return f"The teachers, of one recipe on two machines: {'. '.join(each)}."


def _cells(line: Line) -> list[str]:
    spread = f"{min(line.values):.3f} to {max(line.values):.3f}"
    cells = [line.name, f"{statistics.mean(line.values):.3f}", spread]
    if not line.differences:
        return [*cells, "", "", ""]
    width = "" if line.half_width is None else f"± {line.half_width:.3f}"
    return [*cells, f"{line.mean:+.3f}", width, line.verdict]


# ---- the plot ----

_WIDTH, _STEP = 400, 20
_STYLE = """<style>
svg{background:#fff}text{fill:#24292f;font:12px sans-serif}.head{font-weight:600}
.axis{stroke:#8c959f}.grid{stroke:#d8dee4}.span{stroke:#57606a;stroke-width:2}.less{fill:#1a7f37}.more{fill:#cf222e}
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.axis{stroke:#7d8590}
.grid{stroke:#30363d}.span{stroke:#8d96a0}.less{fill:#3fb950}.more{fill:#f85149}}
</style>"""


class _Scale(NamedTuple):
    """Where a difference lies on the drawing.

    Attributes:
        left: The first column of the part that has differences; labels stand before it.
        ticks: Lines on either side of zero.
        tick: From one to the next.
    """

    left: int
    ticks: int
    tick: float

    def x(self, difference: float) -> float:
        middle = self.left + _WIDTH / 2
        return middle + difference * _WIDTH / 2 / (self.ticks * self.tick)

    def within(self, difference: float) -> float:
        return min(max(self.x(difference), self.left), self.left + _WIDTH)


def plot(results: Mapping[str, Any]) -> str:
    """Draw each contender's differences to cross-entropy and their 95 % interval, as SVG."""
    found = [line for line in lines(results["runs"]) if line.differences]
    return drawing(found, tick=0.1, labels=250, headings=PARTS)


def drawing(
    found: Sequence[Line], *, tick: float, labels: int, headings: Mapping[str, str] | None = None
) -> str:
    """Draw lines' differences and their 95 % intervals, as SVG.

    Args:
        found: The lines, each with differences.
        tick: Between two lines of the axis, in bits per byte.
        labels: Width of the names.
        headings: What stands above the lines of each part; None: nothing.
    """
    largest = max(abs(d) for line in found for d in line.differences)
    scale = _Scale(labels, int(largest / tick + 1), tick)
    shapes: list[str] = []
    y, part = 4, None
    for line in found:
        if headings is not None and line.part != part:
            part = line.part
            y += _STEP + 4
            said = html.escape(headings[part])
            shapes.append(f'<text class="head" x="8" y="{y + 4}">{said}</text>')
        y += _STEP
        shapes += _drawn(line, y, scale)
    width, height = labels + _WIDTH + 30, y + 54
    label = "bits per byte against cross-entropy: left is better; lines are 95 % intervals"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{label}</title>",
            _STYLE,
            *_axis(y + _STEP, scale),
            *shapes,
            f'<text x="{scale.x(0)}" y="{height - 8}" text-anchor="middle">{label}</text>',
            "</svg>",
            "",
        ]
    )


def _axis(bottom: int, scale: _Scale) -> Iterator[str]:
    digits = 1 if scale.tick >= 0.1 else 2
    for i in range(-scale.ticks, scale.ticks + 1):
        x = f"{scale.x(i * scale.tick):.1f}"
        yield f'<path class="{"grid" if i else "axis"}" d="M{x} 10V{bottom}"/>'
        shown = f"{i * scale.tick:+.{digits}f}" if i else "0"
        yield f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{shown}</text>'


def _drawn(line: Line, y: int, scale: _Scale) -> Iterator[str]:
    yield f'<text x="20" y="{y + 4}">{html.escape(line.name)}</text>'
    if line.half_width is not None:
        ends = (line.mean + side * line.half_width for side in (-1, 1))
        left, right = (f"{scale.within(end):.1f}" for end in ends)
        yield f'<path class="span" d="M{left} {y}H{right}"/>'
    for d in line.differences:
        side = "less" if d < 0 else "more"
        yield f'<circle class="{side}" cx="{scale.x(d):.1f}" cy="{y}" r="4"/>'


# ---- what is kept ----


def section(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of the page's section, below its heading and surroundings."""
    return [
        SAID.read_text(encoding="utf-8").strip(),
        "",
        table(results),
        "",
        f"![Each seed's difference to cross-entropy]({PLOT.name})",
        "",
    ]


def keep(results: Mapping[str, Any]) -> None:
    """Write the files that the page is made from; a line for each run makes changes readable."""
    runs = ",\n".join(json.dumps(run) for run in results["runs"])
    rest = json.dumps({k: v for k, v in results.items() if k != "runs"}, indent=1)
    KEPT.write_text(f'{rest[:-2]},\n "runs": [\n{runs}\n]}}\n')
    PLOT.write_text(plot(results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.json of a run at full size")
    keep(json.loads(parser.parse_args().results.read_text()))


if __name__ == "__main__":
    main()
