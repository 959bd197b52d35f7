"""Report figures beside their goals, and the machine they were measured on, for every benchmark.

A goal is a ratio within the run or a size, never an absolute time. In the JSON a figure that has
one is `{"value": …, "target": …, "met": true|false}`.
"""

import argparse
import ctypes
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from logitstore.console.terminal import aligned

S = TypeVar("S")
#: What they print for people.
table = aligned


def goal(
    value: float, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """Return a figure with its goal and whether it was met."""
    if at_most is not None:
        return {"value": value, "target": at_most, "met": value <= at_most}
    assert at_least is not None
    return {"value": value, "target": at_least, "met": value >= at_least}


def is_goal(value: Any) -> bool:
    """Return whether a value of a report is a figure with a goal."""
    return isinstance(value, dict) and value.keys() == {"value", "target", "met"}


def said(figure: Mapping[str, Any], at: str) -> str:
    """Format a figure with a goal: `3.42x (>= 3x)`, and `MISSED` if it was missed."""
    target = f"{figure['value']:.2f} ({at} {figure['target']:g})"
    return target if figure["met"] else f"{target} MISSED"


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """Return machine, versions, date and command of this run."""
    return {
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def run_sizes(
    about: str,
    packages: Sequence[str],
    *,
    threads: int,
    sizes: Callable[[bool], Sequence[S]],
    measure: Callable[[S, bool], dict[str, Any]],
    shown: Callable[[S, dict[str, Any]], str],
) -> None:
    """Run the command line of a benchmark that measures the same at several sizes.

    Args:
        about: The docstring of the benchmark's module.
        packages: The packages whose versions are reported.
        threads: The number of threads that were used.
        sizes: Returns the sizes to measure, given whether to be quick.
        measure: Measures one size, given whether to be quick; returns a member of the report's
            `sizes`.
        shown: Formats that member for people; printed as soon as it is measured.
    """
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    args = parser.parse_args()
    found = []
    for size in sizes(args.quick):
        found.append(measure(size, args.quick))
        if not args.json:
            print(shown(size, found[-1]), flush=True)
    if args.json:
        report = {**surroundings(packages), "threads": threads, "sizes": found}
        print(json.dumps(report, indent=1))


class PeakMemory:
    """The peak of this process's memory above what it held when this was made (Linux)."""

    def __init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(
            0
        )  # freed memory that malloc keeps would hide a part of the peak
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        self._before = _status_bytes("VmRSS")

    def bytes_more(self) -> int:
        """Return the bytes, at least one page: less cannot be seen, and ratios divide by it."""
        return max(os.sysconf("SC_PAGE_SIZE"), _status_bytes("VmHWM") - self._before)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
