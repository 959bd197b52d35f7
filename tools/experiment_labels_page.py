"""Make the tables of `tools.experiment_labels` from its results.

    python -m tools.experiment_labels page      keeps them beside this file

`experiment_labels.json` has the runs. `experiment_labels.md` has conclusions, which people write,
and below `MARK` the tables, which are made here.

A student is compared with the one that cross-entropy alone made of the same start, on the same rows
in the same order, on the same kind of device. For the differences d of n of them, the tables have
the mean and the half width of Student's 95 % interval, t(n-1) std(d) / sqrt(n). A contender is
`better` or `worse` if the interval excludes zero, `better?` or `worse?` if it does not but all
agree in sign (one in four contenders without any effect would), and `undecided` otherwise.

The last column is the mean's share of what the control gains, at the same weight: a student that
starts and learns alike, with the teacher's own tokenizer, so that every label is exact. It is left
out where the control does not gain beyond its noise.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.experiment_page import Line
from tools.labels.settings import (
    BALANCE,
    CE,
    CONTENDERS,
    CONTROL,
    SETTINGS,
    STUDENTS,
    WEIGHTS,
    Setting,
)

HERE = Path(__file__).parent
KEPT, SAID = (HERE / f"experiment_labels.{ending}" for ending in ("json", "md"))
MARK = "<!-- What follows is made by `python -m tools.experiment_labels page`. -->"

Run = Mapping[str, Any]


class Key(NamedTuple):
    """What a line of the tables is about."""

    setting: Setting
    contender: str
    weight: str


class Case(NamedTuple):
    """What two students must share to be compared: the start, the order of rows, the device."""

    seed: str
    start: str
    device: str


def read(folder: Path, kept: Iterable[Run] = ()) -> list[Run]:
    """Read all results of a folder; of those of one job and start, the latest of its file.

    Args:
        folder: The folder.
        kept: Results of before, whose folder may be gone: those of the folder count instead.
    """
    found: dict[tuple[str, str, str], Run] = {}
    for run in kept:
        found[run["name"], run["start"], run["device"]] = run
    for file in sorted(folder.glob("results*.jsonl")):
        for run in map(json.loads, file.read_text().splitlines()):
            found[run["name"], run["start"], run["device"]] = run
    return [found[key] for key in sorted(found)]


def lines(runs: Iterable[Run]) -> dict[Key, Line]:
    """Compare every contender with cross-entropy, in the order of the settings."""
    cases: dict[Key, dict[Case, float]] = {}
    for run in runs:
        student, start, rate, contender, weight, seed = run["name"].split("/")
        key = Key(Setting(student, start, rate), contender, weight)
        case = Case(seed, run["start"], run["device"])
        cases.setdefault(key, {})[case] = run["bits_per_byte"]
    return {key: _line(key, cases) for key in sorted(cases, key=_place)}


def _line(key: Key, cases: Mapping[Key, Mapping[Case, float]]) -> Line:
    own, baseline = cases[key], cases.get(Key(key.setting, CE, "1"), {})
    label = key.contender if key.weight == "1" else f"{key.contender}, {_weight(key.weight)}"
    shared = {} if key.contender == CE else own.keys() & baseline.keys()
    differences = [own[case] - baseline[case] for case in sorted(shared)]
    return Line("/".join(key.setting), label, [own[case] for case in sorted(own)], differences)


def _weight(weight: str) -> str:
    return "balanced" if weight == BALANCE else f"weight {weight}"


def _place(key: Key) -> tuple[int, int, int]:
    contender = list(CONTENDERS).index(key.contender)
    return SETTINGS.index(key.setting), contender, WEIGHTS.index(key.weight)


# ---- tables ----


def tables(runs: Sequence[Run]) -> str:
    """Format all results: one table of means over settings, then one for each setting."""
    found = lines(runs)
    return "\n\n".join([_facts(runs), _overview(found), *_by_setting(found)])


def _facts(runs: Sequence[Run]) -> str:
    devices, codes = ({str(run[name]) for run in runs} for name in ("device", "code"))
    steps = {name: _steps(name, runs) for name in dict.fromkeys(s.rate for s in SETTINGS)}
    said = "; ".join(f"{name}: {text}" for name, text in steps.items() if text)
    return (
        f"{len(runs):,} students on {', '.join(sorted(devices))}, by {len(codes)} version(s) of "
        f"the code. {said}. Held-out bits per byte; lower is better."
    )


def _steps(rate: str, runs: Iterable[Run]) -> str:
    found = {(run["learning_rate"], run["steps"]) for run in runs if f"/{rate}/" in run["name"]}
    return ", ".join(f"{steps} steps at {learning:g}" for learning, steps in sorted(found))


def _overview(found: Mapping[Key, Line]) -> str:
    """Set the means of the main weight of all settings beside each other."""
    settings = [s for s in SETTINGS if any(key.setting == s for key in found)]
    labels = dict.fromkeys(
        line.name for key, line in found.items() if line.differences and key.weight == "1"
    )
    by_name = {(key.setting, line.name): line for key, line in found.items()}
    rows = [
        "| | " + " | ".join(f"{s.student}, {s.start}, {s.rate}" for s in settings) + " |",
        "|---|" + "--:|" * len(settings),
    ]
    for label in labels:
        cells = [_short(by_name.get((setting, label))) for setting in settings]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    note = "Against `ce`, at weight 1; **bold**: beyond 95 %; `?`: all seeds agree."
    return "\n".join(["### All settings", "", note, "", *rows])


def _short(line: Line | None) -> str:
    if line is None or not line.differences:
        return ""
    shown = f"{line.mean:+.4f}"
    if line.verdict in ("better", "worse"):
        return f"**{shown}**"
    return shown + ("?" if line.verdict.endswith("?") else "")


def _by_setting(found: Mapping[Key, Line]) -> Iterable[str]:
    for setting in SETTINGS:
        own = {key: line for key, line in found.items() if key.setting == setting}
        if own:
            yield _table(setting, own, found)


def _table(setting: Setting, own: Mapping[Key, Line], found: Mapping[Key, Line]) -> str:
    rows = [
        f"### {STUDENTS[setting.student]}; a {setting.start} student; {setting.rate}",
        "",
        "| | bits/byte | against `ce`, each | mean | 95 % | | of the control's gain |",
        "|---|--:|---|--:|--:|---|--:|",
    ]
    rows += [f"| {' | '.join(_cells(key, line, found))} |" for key, line in own.items()]
    return "\n".join(rows)


def _cells(key: Key, line: Line, found: Mapping[Key, Line]) -> list[str]:
    cells = [line.name, f"{statistics.mean(line.values):.4f}"]
    if not line.differences:
        return [*cells, "", "", "", "", ""]
    each = ", ".join(f"{d:+.4f}" for d in line.differences)
    width = "" if line.half_width is None else f"± {line.half_width:.4f}"
    return [*cells, each, f"{line.mean:+.4f}", width, line.verdict, _share(key, line, found)]


def _share(key: Key, line: Line, found: Mapping[Key, Line]) -> str:
    """Compare with the control of the same start, rate and weight, if that is surely better."""
    alike = key.setting._replace(student=CONTROL)
    control = found.get(Key(alike, "control", key.weight))
    if control is None or not control.differences or control.verdict != "better":
        return ""
    return f"{line.mean / control.mean:.0%}"


# ---- what is kept ----


def keep(folder: Path) -> str:
    """Add the results of a folder to the files that are kept, and return the tables."""
    runs = read(folder, json.loads(KEPT.read_text()) if KEPT.exists() else ())
    KEPT.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    said = SAID.read_text(encoding="utf-8").split(MARK)[0].strip() if SAID.exists() else ""
    shown = tables(runs)
    SAID.write_text(f"{said}\n\n{MARK}\n\n{shown}\n".lstrip(), encoding="utf-8")
    return shown
