"""Students side by side: what each seed measured, its spread, and the distance to a baseline.

Runs of one `name` are seeds of one contender; the first contender is the baseline. A difference to
it is taken seed by seed where both have the seed: two students that began with the same weights and
read the same rows in the same order share most of their noise.

    {"baseline": NAME, "metrics": [{"name", "label", "lower_is_better"}],
     "contenders": [{"name", "runs": [RUN, …], "metrics": {METRIC: {
         "mean", "std", "min", "max", "values": {SEED: VALUE},
         "difference", "wins", "pairs"}}}], "notes": [TEXT]}

is all that a table or a page needs; `std` is of the sample, None of a single run, and the last
three are None for the baseline and where no seed is shared. Notes say what cannot be compared:
figures that nobody measured, or not on the same text.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from distill.report.results import RunObject, read_results
from logitstore.console.terminal import aligned, printable
from logitstore.errors import InputError

Comparison = dict[str, Any]
_LONGEST_NAME, _LARGEST = 40, 1e18


class Metric(NamedTuple):
    """One figure of a run object.

    Attributes:
        name: Its key.
        label: For people.
        lower_is_better: Or higher.
        how: The format of a value.
        unit: Of the label, in that of the key.
    """

    name: str
    label: str
    lower_is_better: bool
    how: str = ".3f"
    unit: float = 1

    def shown(self, value: float | None, sign: str = "") -> str:
        """Write a value in the unit of the label; with `sign` "+", its sign too."""
        return "-" if value is None else format(value / self.unit, sign + "," + self.how)


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
    Metric("peak_rss_bytes", "peak memory, MiB", lower_is_better=True, how=".0f", unit=2**20),
)
_COST = ("time_s", "peak_rss_bytes")
_LONGEST_WAY = 160
#: What `distill evaluate` says of how it measured, and which figures are meant.
_PARTS = {
    "evaluation": "bits/byte",
    "answered": "token F1, exact match and ROUGE",
    "judged": "agreement, ULD and calibration",
}


def read(path: str) -> RunObject:
    """Read the run object of a student folder, or of its `results.json`.

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


def key_of(run: RunObject) -> tuple[str, str]:
    """Name a run by contender and seed: no two runs of a comparison have the same."""
    return str(run["name"]), str(run.get("seed"))


def compare(runs: Sequence[RunObject], baseline: str | None = None) -> Comparison:
    """Compare runs, seed by seed, with those of a baseline.

    Args:
        runs: Of all contenders.
        baseline: The name of a contender, which then comes first; without one, that of the first.

    Returns:
        What the head of this file shows, JSON-ready.

    Raises:
        InputError: Two runs are of one contender and seed, no figure is known of any, or the
            baseline is none of them.
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
    first = next(iter(groups)) if baseline is None else baseline
    if first not in groups:
        raise InputError(
            f"--baseline {first}: none of these runs has this name. Name one of "
            f"{', '.join(map(shown_name, groups))}."
        )
    groups = {first: groups.pop(first), **groups}
    return {
        "baseline": first,
        "metrics": [
            {"name": m.name, "label": m.label, "lower_is_better": m.lower_is_better}
            for m in present
        ],
        "contenders": [
            {
                "name": name,
                "runs": members,
                "metrics": {
                    m.name: spread(members, None if name == first else groups[first], m)
                    for m in present
                },
            }
            for name, members in groups.items()
        ],
        "notes": [*_unmeasured(present), *(n for p in _PARTS.items() for n in _unlike(*p, runs))],
    }


def _unmeasured(present: Sequence[Metric]) -> Iterator[str]:
    if all(map(is_cost, present)):
        yield (
            "Nothing but their cost is known of these students: `distill evaluate FOLDER DATA` "
            "measures how good they are."
        )


def _unlike(part: str, label: str, runs: Sequence[RunObject]) -> Iterator[str]:
    """Note it where the figures of a part were not all measured on one text, in one way."""
    ways: dict[tuple[Any, ...], str] = {}
    for run in runs:
        facts = run.get(part)
        if isinstance(facts, dict):
            ways.setdefault(*_way(facts))
    if len(ways) > 1:
        shown = "; ".join(printable(way)[:_LONGEST_WAY] for way in list(ways.values())[:3])
        yield f"{label}: not all were measured alike, so do not compare these: {shown}."


def _way(facts: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """Describe how figures were measured; those of one description can be compared.

    Neither the tokenizer nor the place of the text counts.
    """
    covered, left_out = facts.get("bytes"), facts.get("bytes_left_out")
    text_bytes = covered + left_out if is_number(covered) and is_number(left_out) else None
    found = {
        "rows": facts.get("rows"),
        "bytes": text_bytes,
        "prompts": facts.get("prompts"),
        "new tokens": facts.get("max_new_tokens"),
        "digest": facts.get("store_digest"),
    }
    said = ", ".join(f"{value} {name}" for name, value in found.items() if is_number(value))
    name = facts.get("data") or facts.get("store")
    return tuple(map(str, found.values())), f"{name} ({said})" if said else str(name)


def spread(
    runs: Sequence[RunObject], baseline: Sequence[RunObject] | None, metric: Metric
) -> dict[str, Any]:
    """Summarise one metric of a contender over its seeds, and against the baseline's.

    Args:
        runs: Of the contender, a seed each.
        baseline: Runs of the baseline; None where the contender is the baseline.
        metric: Which figure.

    Returns:
        What `metrics` of a contender holds, see the head of this file.
    """
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
    """Write a comparison as text: a block for each metric, in it a line for each contender."""
    metrics = {m.name: m for m in METRICS}
    lines: list[tuple[str, ...]] = []
    for told in found["metrics"]:
        metric = metrics[told["name"]]
        better = "lower is better" if metric.lower_is_better else "higher is better"
        lines.append((f"{metric.label} ({better})", "runs", "mean", "spread", "against", "wins"))
        lines += [_line(contender, metric) for contender in found["contenders"]]
        lines.append(())
    text = aligned(lines[:-1])
    meaning = f"against {shown_name(found['baseline'])}, seed by seed; spread is from - to."
    return "\n".join([text, "", meaning, *found["notes"]])


def _line(contender: Mapping[str, Any], metric: Metric) -> tuple[str, ...]:
    own = contender["metrics"][metric.name]
    low, high = metric.shown(own["min"]), metric.shown(own["max"])
    pairs = own["pairs"]
    return (
        "  " + shown_name(contender["name"]),
        str(len(own["values"])),
        metric.shown(own["mean"]),
        "-" if own["min"] is None else f"{low} - {high}",
        "" if own["difference"] is None else metric.shown(own["difference"], "+"),
        "" if pairs is None or is_cost(metric) else f"{own['wins']} of {pairs}",
    )


def is_cost(metric: Metric) -> bool:
    """Tell whether a metric is a cost of training, in which nobody wins."""
    return metric.name in _COST


def shown_name(name: str) -> str:
    """Shorten and clean a run's name, which may be any text, for a terminal or a page."""
    shown = printable(name)
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"


def _by_seed(runs: Sequence[RunObject], metric: Metric) -> dict[str, float]:
    found = {str(run.get("seed")): _value(run, metric) for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _value(run: RunObject, metric: Metric) -> float | None:
    value = run.get(metric.name)
    return float(value) if is_number(value) else None


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tell whether a value of a JSON file is a finite number that a table has room for."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST and math.isfinite(value)


def _repeated(seeds: Sequence[Any]) -> Any:
    return next(seed for i, seed in enumerate(seeds) if seed in seeds[:i])
