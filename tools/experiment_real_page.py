"""Make the tables of `tools.experiment_real` from its results.

    python -m tools.experiment_real page      keeps them beside this file

`experiment_real.json` has the runs. `experiment_real.md` has conclusions, which people write, and
below `MARK` the goals and tables, which are made here.

A student is compared with the one that cross-entropy alone made of the same start, on the same rows
in the same order, on the same kind of device. For the differences of some seeds, the tables have
the mean and the half width of Student's 95 % interval, as :mod:`tools.experiment_page` defines it;
`better` or `worse` if the interval excludes zero, `better?` or `worse?` if it does not but all
seeds agree. Of bits per byte and calibration less is better, of F1 and exact match more.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.benchmark import goal
from tools.experiment_labels_page import Run, read
from tools.experiment_page import Line
from tools.real.settings import CE, CONTENDERS, DATA, SETTINGS, SMALL, STUDENTS, Setting

__all__ = ["KEPT", "MARK", "SAID", "goals", "keep", "read", "tables"]
HERE = Path(__file__).parent
KEPT, SAID = (HERE / f"experiment_real.{ending}" for ending in ("json", "md"))
MARK = "<!-- What follows is made by `python -m tools.experiment_real page`. -->"

#: The metrics: their names, and whether more of it is better.
METRICS = {
    "bits_per_byte": ("bits/byte", False),
    "token_f1": ("F1 with the teacher", True),
    "exact_match": ("exact", True),
    "rule_token_f1": ("F1 with the rule", True),
    "rule_exact_match": ("exact", True),
    "calibration": ("calibration error", False),
}


class Case(NamedTuple):
    """What two students must share to be compared."""

    seed: str
    start: str
    device: str


#: The runs of each contender of each setting.
Found = Mapping[tuple[Setting, str], Mapping[Case, Run]]


def grouped(runs: Iterable[Run]) -> Found:
    """Collect the runs, in the order of settings and contenders."""
    found: dict[tuple[Setting, str], dict[Case, Run]] = {}
    for run in runs:
        student, data, contender, seed = run["name"].split("/")
        case = Case(seed, run["start"], run["device"])
        found.setdefault((Setting(student, data), contender), {})[case] = run
    names = list(CONTENDERS)
    return {
        key: found[key]
        for key in sorted(found, key=lambda k: (SETTINGS.index(k[0]), names.index(k[1])))
    }


def line_of(found: Found, setting: Setting, contender: str, metric: str) -> Line | None:
    """Compare a contender with cross-entropy by a metric; None without a run that has it.

    Differences are written so that less is better, whatever the metric.
    """
    own = {
        case: run[metric]
        for case, run in found.get((setting, contender), {}).items()
        if metric in run
    }
    if not own:
        return None
    sign = -1 if METRICS[metric][1] else 1
    base = {} if contender == CE else found.get((setting, CE), {})
    shared = sorted(own.keys() & base.keys())
    differences = [sign * (own[case] - base[case][metric]) for case in shared]
    return Line("/".join(setting), contender, [own[case] for case in sorted(own)], differences)


# ---- goals ----


def goals(runs: Sequence[Run]) -> dict[str, Any]:
    """Judge what was to be shown, as far as there are runs to judge it by."""
    found = grouped(runs)
    made: dict[str, Any] = {}
    for setting in (s for s in SETTINGS if s.student == "pruned"):
        live = line_of(found, setting, "live KL", "bits_per_byte")
        for name in ("tail_kl", SMALL):
            cached = line_of(found, setting, name, "bits_per_byte")
            if cached and live and cached.differences and live.verdict == "better":
                share = goal(cached.mean / live.mean, at_least=0.95)
                made[f"pruned, {setting.data}: share of live KL's gain by {name}"] = share
        held = [run["bytes_per_token"] for run in found.get((setting, SMALL), {}).values()]
        if held:
            name = f"pruned, {setting.data}: bytes a token of the store for {SMALL}"
            made[name] = goal(max(held), at_most=100)
    for setting in SETTINGS:
        line = line_of(found, setting, "the default", "bits_per_byte")
        if line is not None and line.differences:
            name = f"{setting.student}, {setting.data}: seeds in which the default beats ce"
            better = sum(d < 0 for d in line.differences) / len(line.differences)
            made[name] = goal(better, at_least=1.0)
    for setting in SETTINGS:
        ours = "tail_kl" if setting.student == "pruned" else "the default"
        line = line_of(found, setting, f"{ours}, half the rows", "bits_per_byte")
        if line is not None and line.differences:
            name = (
                f"{setting.student}, {setting.data}: half the rows with {ours}, against all with ce"
            )
            made[name] = goal(line.mean, at_most=0.0)
    return made


# ---- tables ----


def tables(runs: Sequence[Run]) -> str:
    """Format the goals, then a table for each setting."""
    if not runs:
        return "Nothing has been measured yet."
    found = grouped(runs)
    return "\n\n".join([_facts(runs), *_goals(runs), *_settings(found)])


def _facts(runs: Sequence[Run]) -> str:
    devices, codes = ({str(run[name]) for run in runs} for name in ("device", "code"))
    rates = {
        f"{run['name'].split('/')[0]}: {run['steps']} steps at {run['learning_rate']:g}"
        for run in runs
        if run["steps"]
    }
    return (
        f"{len(runs):,} students on {', '.join(sorted(devices)) or 'nothing'}, by {len(codes)} "
        f"version(s) of the code. {'; '.join(sorted(rates))}. Against `ce`, mean and 95 %; "
        "**bold**: beyond it; `?`: all seeds agree."
    )


def _goals(runs: Sequence[Run]) -> Iterator[str]:
    found = goals(runs)
    if found:
        rows = ["| goal | measured | wanted | |", "|---|--:|--:|---|"]
        rows += [
            f"| {name} | {g['value']:.3g} | {g['target']:g} | {'' if g['met'] else 'MISSED'} |"
            for name, g in found.items()
        ]
        yield "\n".join(rows)


def _settings(found: Found) -> Iterator[str]:
    for setting in SETTINGS:
        contenders = [name for key, name in found if key == setting]
        if contenders:
            yield _table(found, setting, contenders)


def _table(found: Found, setting: Setting, contenders: Sequence[str]) -> str:
    metrics = [m for m in METRICS if line_of(found, setting, contenders[0], m) is not None]
    student, data = STUDENTS[setting.student], DATA[setting.data]
    rows = [
        f"### {setting.student.capitalize()}: {student}; {data}",
        "",
        "| | seeds | " + " | ".join(f"{METRICS[m][0]} | |" for m in metrics),
        "|---|--:|" + "--:|--:|" * len(metrics),
    ]
    for name in contenders:
        lines = [line_of(found, setting, name, m) for m in metrics]
        cells = [cell for m, line in zip(metrics, lines, strict=True) for cell in _cells(m, line)]
        count = max(len(line.values) for line in lines if line is not None)
        rows.append(f"| {name} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cells(metric: str, line: Line | None) -> tuple[str, str]:
    """Write the mean of a metric, and the difference to cross-entropy in the metric's own sign."""
    if line is None:
        return "", ""
    mean = f"{statistics.mean(line.values):.4f}"
    if not line.differences:
        return mean, ""
    sign = -1 if METRICS[metric][1] else 1
    shown = f"{sign * line.mean:+.4f}".replace("-0.0000", "+0.0000")
    shown += "" if line.half_width is None else f" ± {line.half_width:.4f}"
    if line.verdict in ("better", "worse"):
        return mean, f"**{shown}**"
    return mean, shown + ("?" if line.verdict.endswith("?") else "")


# ---- what is kept ----


def keep(folder: Path) -> str:
    """Add the results of a folder to the files that are kept, and return the tables."""
    runs = read(folder, json.loads(KEPT.read_text()) if KEPT.exists() else ())
    KEPT.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    said = SAID.read_text(encoding="utf-8").split(MARK)[0].strip() if SAID.exists() else ""
    shown = tables(runs)
    SAID.write_text(f"{said}\n\n{MARK}\n\n{shown}\n".lstrip(), encoding="utf-8")
    return shown
