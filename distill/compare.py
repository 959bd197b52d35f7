"""Students side by side: what each seed measured, its spread, and the distance to a baseline.

Runs of one `name` are seeds of one contender; the first contender is the baseline. A difference to
it is taken seed by seed where both have the seed: two students that began with the same weights and
read the same rows in the same order share most of their noise.

    {"baseline": NAME, "metrics": [{"name", "label", "lower_is_better"}],
     "contenders": [{"name", "runs": [RUN, …], "metrics": {METRIC: {
         "mean", "std", "min", "max", "values": {SEED: VALUE},
         "difference", "wins", "pairs"}}}]}

is all that a table or a page needs; `std` is of the sample, None of a single run, and the last
three are None for the baseline and where no seed is shared.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.results import RunObject, read_results
from logitstore.errors import InputError
from logitstore.inspection.terminal import printable

Comparison = dict[str, Any]
_LONGEST_NAME = 40


class Metric(NamedTuple):
    """One figure of a run object.

    Attributes:
        name: Its key.
        label: For people.
        lower_is_better: Or higher.
        how: The format of a value.
    """

    name: str
    label: str
    lower_is_better: bool
    how: str = ".3f"

    def shown(self, value: float | None, sign: str = "") -> str:
        return "-" if value is None else format(value, sign + self.how)


#: All that is known, in the order of the columns; a table has those that some run has.
METRICS = (
    Metric("bits_per_byte", "bits/byte", lower_is_better=True),
    Metric("agreement", "agreement", lower_is_better=False),
    Metric("agreement_prefix", "agreement (prefix)", lower_is_better=False),
    Metric("uld", "ULD", lower_is_better=True),
    Metric("calibration_error", "calibration error", lower_is_better=True),
    Metric("token_f1", "token F1", lower_is_better=False),
    Metric("exact_match", "exact match", lower_is_better=False),
    Metric("rouge1", "ROUGE-1", lower_is_better=False),
    Metric("rouge2", "ROUGE-2", lower_is_better=False),
    Metric("rougeL", "ROUGE-L", lower_is_better=False),
    Metric("rougeLsum", "ROUGE-Lsum", lower_is_better=False),
    Metric("time_s", "time, s", lower_is_better=True, how=".1f"),
    Metric("peak_rss_bytes", "peak memory, bytes", lower_is_better=True, how=".3g"),
)
_COST = ("time_s", "peak_rss_bytes")


def read(path: str) -> RunObject:
    """The run object of a student folder, or of its `results.json`.

    Raises:
        InputError: There is none, or it is damaged.
    """
    folder = Path(path)
    run = read_results(folder.parent if folder.is_file() else folder, writable=False)
    if run is None:
        raise InputError(
            f"{path}: no results.json with a run in it. Give folders that `distill train` made; "
            "`distill evaluate FOLDER DATA` adds its figures to them."
        )
    return run


def compare(runs: Sequence[RunObject]) -> Comparison:
    """What the head of this file shows, JSON-ready.

    Raises:
        InputError: Two runs are of one contender and seed, or no figure is known of any.
    """
    groups: dict[str, list[RunObject]] = {}
    for run in runs:
        groups.setdefault(str(run["name"]), []).append(run)
    for name, members in groups.items():
        seeds = [run.get("seed") for run in members]
        if len(set(map(str, seeds))) < len(seeds):
            raise InputError(
                f"{name}: several runs with seed {_repeated(seeds)}, so which is which? Give each "
                "contender its own --run_name, and each of its runs its own --seed."
            )
    present = [m for m in METRICS if any(_value(run, m) is not None for run in runs)]
    if not present:
        raise InputError(
            "none of these runs has a figure. `distill evaluate FOLDER DATA` measures a student "
            "and adds its figures to its results.json."
        )
    baseline = next(iter(groups.values()))
    return {
        "baseline": str(baseline[0]["name"]),
        "metrics": [
            {"name": m.name, "label": m.label, "lower_is_better": m.lower_is_better}
            for m in present
        ],
        "contenders": [
            {
                "name": name,
                "runs": members,
                "metrics": {
                    m.name: spread(members, None if members is baseline else baseline, m)
                    for m in present
                },
            }
            for name, members in groups.items()
        ],
    }


def spread(
    runs: Sequence[RunObject], baseline: Sequence[RunObject] | None, metric: Metric
) -> dict[str, Any]:
    """A contender's figures of one metric over its seeds, and against the baseline's."""
    values = _by_seed(runs, metric)
    each = list(values.values())
    differences = []
    if baseline is not None:
        theirs = _by_seed(baseline, metric)
        differences = [values[seed] - theirs[seed] for seed in values if seed in theirs]
    wins = sum((d < 0) if metric.lower_is_better else (d > 0) for d in differences)
    return {
        "mean": statistics.fmean(each) if each else None,
        "std": statistics.stdev(each) if len(each) > 1 else None,
        "min": min(each, default=None),
        "max": max(each, default=None),
        "values": values,
        "difference": statistics.fmean(differences) if differences else None,
        "wins": wins if differences else None,
        "pairs": len(differences) if differences else None,
    }


def table(found: Comparison) -> str:
    """For people: a block a metric, a line a contender."""
    metrics = {m.name: m for m in METRICS}
    lines: list[tuple[str, ...]] = []
    for told in found["metrics"]:
        metric = metrics[told["name"]]
        better = "lower is better" if metric.lower_is_better else "higher is better"
        lines.append((f"{metric.label} ({better})", "runs", "mean", "spread", "against", "wins"))
        lines += [_line(contender, metric) for contender in found["contenders"]]
        lines.append(())
    text = aligned(lines[:-1])
    return f"{text}\n\nagainst {_name(found['baseline'])}, seed by seed; spread is from - to."


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Columns of equal width, the first to the left; an empty tuple is an empty line."""
    columns = max(map(len, lines))
    widths = [max(len(line[i]) for line in lines if line) for i in range(columns)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )


def _line(contender: Mapping[str, Any], metric: Metric) -> tuple[str, ...]:
    own = contender["metrics"][metric.name]
    low, high = metric.shown(own["min"]), metric.shown(own["max"])
    pairs = own["pairs"]
    is_cost = metric.name in _COST
    return (
        "  " + _name(contender["name"]),
        str(len(own["values"])),
        metric.shown(own["mean"]),
        "-" if own["min"] is None else f"{low} - {high}",
        "" if own["difference"] is None else metric.shown(own["difference"], "+"),
        "" if pairs is None or is_cost else f"{own['wins']} of {pairs}",
    )


def _name(name: str) -> str:
    """A run is called what anybody likes; a terminal reads this."""
    shown = printable(name)
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"


def _by_seed(runs: Sequence[RunObject], metric: Metric) -> dict[str, float]:
    found = {str(run.get("seed")): _value(run, metric) for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _value(run: RunObject, metric: Metric) -> float | None:
    value = run.get(metric.name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _repeated(seeds: Sequence[Any]) -> Any:
    return next(seed for i, seed in enumerate(seeds) if seed in seeds[:i])
