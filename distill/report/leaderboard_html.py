"""Make the leaderboard of a page: one table, a line for each student, which a click sorts.

It comes sorted, the best first, so it needs no script to be read. On a narrow screen a line becomes
a card, whose figures have their names beside them.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from distill.report.figures import colour
from distill.report.finding import chief, how_sure, ranked
from distill.report.leaderboard import against, directions, present, range_of
from distill.report.metrics import Metric, is_cost, shown_name


class _Cell(NamedTuple):
    """A cell: its content as HTML, and the number that it is sorted by."""

    html: str
    value: float | None


def leaderboard(found: Mapping[str, Any]) -> str:
    """Make the table, and below it what its signs mean.

    Args:
        found: What `comparison.compare` returns.
    """
    metrics = present(found)
    first = chief(found) or metrics[0]
    metrics = [first, *(metric for metric in metrics if metric is not first)]
    several = len(found["contenders"]) > 1
    head = ['<th scope="col">student</th>', _head("seeds", "higher")]
    for metric in metrics:
        sort = "ascending" if metric.lower_is_better else "descending"
        head.append(_head(metric.label, _better(metric), sort if metric is first else "none"))
        if metric is first and several:
            head.append(_head("against the baseline", _better(metric)))
    lines = [_line(found, i, metrics) for i in ranked(found["contenders"], first)]
    below = [f"{directions(metrics)}." if any(not is_cost(m) for m in metrics) else ""]
    below += [how_sure(found)] if several and not is_cost(first) else []
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="leaderboard">'
        f'<table class="board"><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="dim">{escape(" ".join(filter(None, below)))}</p>'
    )


def seeds(found: Mapping[str, Any]) -> str:
    """Make a folded table of what each seed measured."""
    metrics = present(found)
    columns = "".join(f'<th scope="col">{escape(metric.label)}</th>' for metric in metrics)
    lines = []
    for i, contender in enumerate(found["contenders"]):
        for run in contender["runs"]:
            seed = str(run.get("seed"))
            cells = "".join(
                f"<td>{metric.shown(contender['metrics'][metric.name]['values'].get(seed))}</td>"
                for metric in metrics
            )
            lines.append(
                f'<tr><th scope="row" class="name {colour(i)}">'
                f"{escape(shown_name(contender['name']))}</th><td>{escape(shown_name(seed))}</td>"
                f"{cells}</tr>"
            )
    return (
        "<details><summary>Every seed, as a table</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="every seed"><table><thead><tr>'
        f'<th scope="col">student</th><th scope="col">seed</th>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _head(label: str, better: str, sort: str = "none") -> str:
    """Make a column's head; the page's script makes it a button that puts the better end first."""
    return f'<th scope="col" data-better="{better}" aria-sort="{sort}">{escape(label)}</th>'


def _better(metric: Metric) -> str:
    return "lower" if metric.lower_is_better else "higher"


def _line(found: Mapping[str, Any], i: int, metrics: Sequence[Metric]) -> str:
    contender = found["contenders"][i]
    is_base = contender["name"] == found["baseline"]
    tag = ' <small class="dim">baseline</small>' if is_base else ""
    name = f'<span class="name {colour(i)}">{escape(shown_name(contender["name"]))}</span>{tag}'
    count = len(contender["runs"])
    cells = [_td("seeds", _Cell(str(count), count))]
    for metric in metrics:
        own = contender["metrics"][metric.name]
        cells.append(_td(metric.label, _value(own, metric, beside=metric is not metrics[0])))
        if metric is metrics[0] and len(found["contenders"]) > 1:
            cells.append(_td("against the baseline", _judged(own, metric)))
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _td(label: str, cell: _Cell) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    inside = f"<div>{cell.html}</div>" if cell.html else ""  # a card leaves an empty cell out
    return f'<td data-label="{escape(label)}"{value}>{inside}</td>'


def _value(own: Mapping[str, Any], metric: Metric, *, beside: bool) -> _Cell:
    """Write a mean; below it the range of the seeds, or beside the others the difference."""
    said = []
    if (spread := range_of(own, metric)) != metric.shown(own["mean"]):
        said.append(spread)
    if beside and own["difference"] is not None and not is_cost(metric):
        said.append(f"({metric.shown(own['difference'], '+')})")
    small = f' <small class="dim">{escape(" ".join(said))}</small>' if said else ""
    return _Cell(f"{metric.shown(own['mean'])}{small}", own["mean"])


def _judged(own: Mapping[str, Any], metric: Metric) -> _Cell:
    word = own["verdict"]
    if word is None or is_cost(metric):
        return _Cell(escape(against(own, metric)), own["difference"] or 0.0)
    number = against(own, metric).removesuffix(word).strip()
    kind = word.replace(" ", "-")
    return _Cell(f'{escape(number)} <span class="word {kind}">{word}</span>', own["difference"])
