"""Students side by side: what each seed measured, its spread, and the distance to a baseline.

Runs of one `name` are seeds of one contender; the first contender is the baseline. A difference to
it is taken seed by seed where both have the seed: two students that began with the same weights and
read the same rows in the same order share most of their noise.

    {"baseline": NAME, "metrics": [{"name", "label", "lower_is_better"}],
     "contenders": [{"name", "runs": [RUN, …], "metrics": {METRIC: {
         "mean", "std", "min", "max", "values": {SEED: VALUE},
         "difference", "half_width", "verdict", "wins", "pairs"}}}], "notes": [TEXT], "unlike":
     [METRIC], "finding": SENTENCE}

is all that a table or a page needs; `std` is of the sample, None of a single run, and the last five
are None for the baseline. A verdict is a word of :mod:`distill.report.verdict`, and `half_width`
that of its interval; without a shared seed, all but the verdict are None. Notes say what cannot be
compared: figures that nobody measured, or not on the same text; `unlike` names the latter. The
finding says of the first metric what the rest shows, and how sure that is.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.finding import finding
from distill.report.metrics import METRICS, Metric, is_cost, is_number, shown_name
from distill.report.results import RunObject, read_results
from distill.report.verdict import judge
from logitstore.console.terminal import printable
from logitstore.errors import InputError

Comparison = dict[str, Any]
_LONGEST_WAY = 160
#: A smaller share of the baseline's mean is no difference: another version of a library makes more.
MARGIN = 0.001
#: What `distill evaluate` says of how it measured, and which figures are meant.
_PARTS = {
    "evaluation": "bits/byte",
    "answered": "token F1, exact match and ROUGE",
    "judged": "agreement, ULD and calibration",
}
#: The same by the names of the figures.
_MEASURED = {
    "evaluation": ("bits_per_byte",),
    "answered": ("token_f1", "exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum"),
    "judged": ("agreement", "agreement_prefix", "uld", "calibration_error"),
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
    unlike = {part: list(_unlike(part, label, runs)) for part, label in _PARTS.items()}
    found = {
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
                    m.name: spread(
                        members,
                        None if name == first else groups[first],
                        m,
                        comparisons=len(groups) - 1,
                    )
                    for m in present
                },
            }
            for name, members in groups.items()
        ],
        "notes": [*_unmeasured(present), *(note for notes in unlike.values() for note in notes)],
        "unlike": [name for part, notes in unlike.items() if notes for name in _MEASURED[part]],
    }
    return found | {"finding": finding(found)}


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
    runs: Sequence[RunObject],
    baseline: Sequence[RunObject] | None,
    metric: Metric,
    *,
    comparisons: int = 1,
) -> dict[str, Any]:
    """Summarise one metric of a contender over its seeds, and against the baseline's.

    Args:
        runs: Of the contender, a seed each.
        baseline: Runs of the baseline; None where the contender is the baseline.
        metric: Which figure.
        comparisons: How many contenders are compared with the baseline.

    Returns:
        What `metrics` of a contender holds, see the head of this file.
    """
    values = _by_seed(runs, metric)
    each = list(values.values())
    found = {
        "mean": statistics.fmean(each) if each else None,
        "std": statistics.stdev(each) if len(each) > 1 else None,
        "min": min(each, default=None),
        "max": max(each, default=None),
        "values": values,
    }
    theirs = {} if baseline is None else _by_seed(baseline, metric)
    differences = [values[seed] - theirs[seed] for seed in values if seed in theirs]
    margin = MARGIN * abs(statistics.fmean(theirs.values())) if theirs else 0.0
    verdict = judge(
        differences,
        lower_is_better=metric.lower_is_better,
        margin=margin,
        comparisons=comparisons,
    )
    wins = sum((d < 0) if metric.lower_is_better else (d > 0) for d in differences)
    return found | {
        "difference": verdict.mean,
        "half_width": verdict.half_width,
        "verdict": None if baseline is None else verdict.word,
        "wins": wins if differences else None,
        "pairs": verdict.pairs or None,
    }


def _by_seed(runs: Sequence[RunObject], metric: Metric) -> dict[str, float]:
    found = {str(run.get("seed")): _value(run, metric) for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _value(run: RunObject, metric: Metric) -> float | None:
    value = run.get(metric.name)
    return float(value) if is_number(value) else None


def _repeated(seeds: Sequence[Any]) -> Any:
    return next(seed for i, seed in enumerate(seeds) if seed in seeds[:i])
