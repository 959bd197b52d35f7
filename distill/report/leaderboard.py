"""Write a comparison as one table for a terminal: a line for each student, the best first.

A figure that was measured is a column; beside the first, what the differences to the baseline say.
A terminal of 80 columns has no room for all of them, so the table goes on below, the names again.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

from distill.report.finding import chief, how_sure, ranked
from distill.report.metrics import METRICS, Metric, is_cost, shown_name
from logitstore.console.terminal import clipped, folded

_COLUMNS, _BASELINE = 80, 16


def table(found: Mapping[str, Any]) -> str:
    """Write what was found, then the table, then where its verdicts come from and what to mind."""
    metrics = present(found)
    first = chief(found) or metrics[0]
    order = ranked(found["contenders"], first)
    judged = len(found["contenders"]) > 1 and not is_cost(first)
    head = ["students", "seeds", first.label, *(["from - to"] if _varies(found, first) else [])]
    baseline = clipped(shown_name(found["baseline"]), _BASELINE)
    head += [f"against {baseline}"] if judged else []
    rest = [metric for metric in metrics if metric is not first]
    lines = [[*head, *(metric.label for metric in rest)]]
    for i in order:
        contender = found["contenders"][i]
        own = contender["metrics"][first.name]
        cells = [shown_name(contender["name"]), str(len(contender["runs"]))]
        cells.append(first.shown(own["mean"]))
        if _varies(found, first):
            cells.append(range_of(own, first))
        if judged:
            cells.append(against(own, first))
        cells += [metric.shown(contender["metrics"][metric.name]["mean"]) for metric in rest]
        lines.append(cells)
    below = [f"{directions(metrics)}."] if any(not is_cost(m) for m in metrics) else []
    below += [how_sure(found)] if judged else []
    said = [
        textwrap.fill(text, _COLUMNS, break_on_hyphens=False)
        for text in (found["finding"], *below, *found["notes"])
    ]
    return "\n".join([said[0], "", folded(lines, _COLUMNS), "", *said[1:]])


def present(found: Mapping[str, Any]) -> list[Metric]:
    """List the metrics that some run has, in their order."""
    names = {each["name"] for each in found["metrics"]}
    return [metric for metric in METRICS if metric.name in names]


def against(own: Mapping[str, Any], metric: Metric) -> str:
    """Write a difference to the baseline with its interval and its verdict; "" of the baseline."""
    if own["verdict"] is None:
        return ""
    if own["difference"] is None:
        return "-" if own["mean"] is None else str(own["verdict"])
    said = metric.shown(own["difference"], "+")
    if own["half_width"] is not None:
        said += f" ± {metric.shown(own['half_width'])}"
    return said if is_cost(metric) else f"{said} {own['verdict']}"


def range_of(own: Mapping[str, Any], metric: Metric) -> str:
    """Write the least and the most of the seeds."""
    if own["min"] is None:
        return "-"
    least, most = metric.shown(own["min"]), metric.shown(own["max"])
    return least if least == most else f"{least} - {most}"


def directions(metrics: list[Metric]) -> str:
    """Say of which figures less is better, and of which more; costs speak for themselves."""
    lower = [m.label for m in metrics if m.lower_is_better and not is_cost(m)]
    higher = [m.label for m in metrics if not m.lower_is_better]
    parts = [("Lower", lower), ("Higher", higher)]
    return ". ".join(f"{word} is better: {', '.join(names)}" for word, names in parts if names)


def _varies(found: Mapping[str, Any], metric: Metric) -> bool:
    """Tell whether any contender has more than one seed of this metric."""
    return any(len(c["metrics"][metric.name]["values"]) > 1 for c in found["contenders"])
