"""Make the exactness table: runs that must agree, and how far apart their steps are.

    python -m tools.exactness [--json] [--quick]

A line is a comparison that tests make over twenty steps or more: the largest and the mean relative
difference of loss and of gradient norm. The tests judge it; they run here with twice the steps, and
with those that the suite leaves out because they are long, except with `--quick`. Exit status 1:
one failed.
"""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tools.benchmark import surroundings, table

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/distill/training/test_exactness.py",
    "tests/distill/data/test_grouping.py",
    "tests/distill/training/test_world_size.py",
)


class Collected:
    """A pytest plugin that collects what tests recorded, and the tests that did not pass."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == "call":
            found = [value for name, value in report.user_properties if name == "exactness"]
            self.lines += [{**line, "holds": report.passed} for line in found]  # type: ignore[dict-item]

    def table(self) -> list[dict[str, Any]]:
        """Merge the lines of each comparison into one: its runs, and the worst of them."""
        alike: dict[str, list[dict[str, Any]]] = {}
        for line in self.lines:
            alike.setdefault(line["comparison"], []).append(line)
        return [
            lines[0]
            | {"runs": len(lines), "holds": all(line["holds"] for line in lines)}
            | {
                key: {what: max(line[key][what] for line in lines) for what in ("max", "mean")}
                for key in ("loss", "grad_norm")
            }
            for lines in alike.values()
        ]


def measured(quick: bool) -> Collected:
    """Run the tests and collect what they recorded."""
    found = Collected()
    if not quick:
        os.environ["EXACTNESS_STEPS"] = "24"  # which tests/kit/curves.py reads
    chosen = ["-m", "not slow" if quick else "slow or not slow"]
    flags = ["-n", "0", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *chosen]
    with redirect_stdout(sys.stderr):
        status = pytest.main([*flags, *(str(ROOT / name) for name in TESTS)], plugins=[found])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"pytest could not run the tests of {', '.join(TESTS)}: {status!r}")
    return found


def shown(lines: list[dict[str, Any]]) -> str:
    """Format the table for people."""
    head = ["", "runs", "steps", "loss: max", "mean", "gradient norm: max", "mean", "within", ""]
    rows = [
        [
            line["comparison"],
            str(line["runs"]),
            str(line["steps"]),
            *(
                f"{line[key][what]:.1e}"
                for key in ("loss", "grad_norm")
                for what in ("max", "mean")
            ),
            line["tolerance"],
            "" if line["holds"] else "FAILED",
        ]
        for line in lines
    ]
    return table([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="without what the suite leaves out")
    args = parser.parse_args()
    found = measured(args.quick)
    report = {
        **surroundings(["torch", "transformers", "accelerate"]),
        "comparisons": found.table(),
        "failed": found.failed,
    }
    print(json.dumps(report, indent=1) if args.json else shown(found.table()))
    raise SystemExit(1 if found.failed else 0)


if __name__ == "__main__":
    main()
