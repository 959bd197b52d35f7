"""Make BENCHMARKS.md from benchmark reports: one section each, goals first, then other figures.

    python -m tools.bench_page build/bench/*.json > tools/BENCHMARKS.md
    python -m tools.bench_page --into tools/BENCHMARKS.md build/bench/bench_losses.json

A report is what `python -m tools.bench_… --json` printed; the page adds nothing to it and leaves
nothing out. `bash tools/bench.sh` makes both. The experiment, which takes hours, is not run again:
its section is made from the results that `tools.experiment_page` keeps. What people counted and
wrote down by hand is in `what_a_store_survives.md`: the page ends with it, as it stands there. The
page begins with `tools.first_screen`; what follows is folded, a section under its heading.

`--into` puts the reports in the place of those of a page that is there, and keeps its others.
"""

import argparse
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools import experiment_page, first_screen
from tools.benchmark import is_goal

#: The section that people write.
WRITTEN = Path(__file__).with_name("what_a_store_survives.md")
_SURROUNDINGS = ("machine", "versions", "date", "command")
#: What names the members of a list, in the order of preference.
_NAMES = ("name", "V", "tokens", "length")
#: Parts of a report whose names are left out of a figure's name.
_SILENT = {"sizes", "goals", "measured"}
_INTRODUCTION = """# Benchmarks

Made by `bash tools/bench.sh`, which takes at most eight minutes a section on two cores. A goal is a
ratio within one run or a size, since seconds of one machine mean nothing on another; contenders
take turns, figures are medians, and `MISSED` says so where a goal is. Peers are measured in the
same run where they install from a package index, or where their method is a few lines.
"""

Row = tuple[str, Any]


def page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the whole page, in Markdown.

    Args:
        reports: The report of each benchmark, by its name (`bench_losses`).
    """
    return _joined([_section(name, report) for name, report in sorted(reports.items())])


def renewed(before: str, reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a page with other reports in the place of its own.

    Args:
        before: The page as it is.
        reports: By name; a benchmark that the page has no section of gets one at the end.
    """
    sections = {part.split("\n", 1)[0]: f"## {part}" for part in before.split("\n## ")[1:]}
    for title in (
        _heading(first_screen.TITLE),
        _heading(_title("experiment_quality")),
        _written()[1],
    ):
        sections.pop(title.removeprefix("## "), None)
    for name, report in sorted(reports.items()):
        sections[_title(name)] = _section(name, report)
    return _joined([f"{section.rstrip()}\n" for section in sections.values()])


def _joined(sections: Sequence[str]) -> str:
    below = "\n".join([_experiment(), *sections])
    return "\n".join([_INTRODUCTION, first_screen.section(below), below, _written()[0]])


def _written() -> tuple[str, str]:
    """Return the section that people write, and its heading."""
    written = WRITTEN.read_text(encoding="utf-8")
    return written, written.split("\n", 1)[0]


def _heading(title: str) -> str:
    return f"## {title}"


def _folded(title: str, summary: str, content: Sequence[str]) -> str:
    """Return a section of which only the heading and a summary are seen at first."""
    opened = f'<details markdown="1"><summary>{summary}</summary>'
    return "\n".join([_heading(title), "", opened, "", *content, "</details>", ""])


def _experiment() -> str:
    """Return the first section: what students learn from a store."""
    results = json.loads(experiment_page.KEPT.read_text())
    summary = f"{len(results['runs'])} students by every loss, and what can be said of them"
    content = [*_where(results), "", *experiment_page.section(results)]
    return _folded(_title("experiment_quality"), summary, content)


def _section(name: str, report: Mapping[str, Any]) -> str:
    measured = {key: value for key, value in report.items() if key not in _SURROUNDINGS}
    rows = list(_leaves(measured))
    goals = [(what, value) for what, value in rows if is_goal(value)]
    others = [(what, value) for what, value in rows if not is_goal(value)]
    met = sum(value["met"] for _, value in goals)
    return _folded(
        _title(name),
        f"{met} of {len(goals)} goals are met",
        [
            *_where(report),
            "",
            "| | measured | goal | |",
            "|---|--:|--:|---|",
            *(
                f"| {_cell(what)} | {_number(g['value'])} | {_number(g['target'])} | "
                f"{'' if g['met'] else 'MISSED'} |"
                for what, g in goals
            ),
            "",
            "All other figures:",
            "",
            "| | |",
            "|---|--:|",
            *(f"| {_cell(what)} | {_number(value)} |" for what, value in others),
            "",
        ],
    )


def _title(name: str) -> str:
    """Return the first line of a module's docstring without its full stop, as a heading."""
    about = importlib.import_module(f"tools.{name}").__doc__ or name
    return about.splitlines()[0].rstrip(".")


def _where(report: Mapping[str, Any]) -> Iterator[str]:
    machine, versions = report["machine"], report["versions"]
    yield f"`{report['command']}`, {report['date']}."
    yield f"{machine['processor']}, {machine['cores']} cores, {machine['system']};"
    yield ", ".join(f"{package} {it or 'not installed'}" for package, it in versions.items()) + "."


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[Row]:
    """Yield every figure of a report with its path."""
    if is_goal(value) or not isinstance(value, (dict, list)):
        yield _path(path), value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif all(not isinstance(item, (dict, list)) for item in value):
        yield _path(path), value
    else:
        for i, item in enumerate(value):
            yield from _leaves(item, (*path, _name_of(item, i)))


def _path(names: Sequence[str]) -> str:
    return " · ".join(name for name in names if name not in _SILENT)


def _name_of(item: Any, i: int) -> str:
    names = [key for key in _NAMES if isinstance(item, dict) and key in item]
    return f"{names[0]} = {_number(item[names[0]])}" if names else str(i + 1)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, list)):
        return _cell(str(value))
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def read(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="*", type=Path, help="bench_….json")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="a page to put them into")
    arguments = parser.parse_args()
    reports = read(arguments.reports)
    if arguments.into is None:
        print(page(reports), end="")
    else:
        before = arguments.into.read_text(encoding="utf-8")
        arguments.into.write_text(renewed(before, reports), encoding="utf-8")
    first_screen.main()


if __name__ == "__main__":
    main()
