"""What it costs to start: every help, and a flag or a name that does not exist.

    python -m tools.bench_start [--json] [--quick]

Seconds of processor of a whole process, the median of some, beside the goal of one second; and, as
a measure of this machine, what a process takes that does no more than import torch and
transformers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tools.benchmark import goal, said, surroundings, table

GOAL_S = 1.0
WRONG = "--lerning_rate"
TRAIN = ("distill", "train", "--model_name_or_path", "s", "--store", "s", "--output_dir", "o")
#: What is started, as modules: help, and what is wrong.
COMMANDS = {
    "distill --help": ("distill", "--help"),
    "distill train --help": ("distill", "train", "--help"),
    "distill train --help-all": ("distill", "train", "--help-all"),
    "distill train, a wrong flag": ("distill", "train", WRONG, "1"),
    "distill train, a wrong loss": (*TRAIN, "--loss", "ulb"),
    "distill train, a wrong preset": (*TRAIN, "--preset", "best"),
    "distill train, a wrong choice": (*TRAIN, "--uncovered", "soft"),
    "distill coverage, a wrong loss": ("distill", "coverage", "s", "s", "--loss", "ulb"),
    "distill evaluate, a wrong metric": ("distill", "evaluate", "s", "--metrics", "accuracy"),
    "distill coverage --help": ("distill", "coverage", "--help"),
    "distill evaluate --help": ("distill", "evaluate", "--help"),
    "logitstore --help": ("logitstore", "--help"),
    "logitstore capture --help": ("logitstore", "capture", "--help"),
    "logitstore capture, a wrong flag": ("logitstore", "capture", WRONG, "1"),
    "logitstore info --help": ("logitstore", "info", "--help"),
}
HEAVY = "import torch, transformers"


def processor_s(command: Sequence[str], repeats: int) -> float:
    """Measure the median of the seconds of processor that a command takes."""
    spent = []
    for _ in range(repeats):
        before = os.times()
        subprocess.run([sys.executable, *command], capture_output=True, check=False)
        after = os.times()
        spent.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    return statistics.median(spent)


def measure(repeats: int) -> dict[str, Any]:
    """Measure every command, and the imports that they do without."""
    heavy_s = processor_s(["-c", HEAVY], max(1, repeats // 2))
    found: dict[str, Any] = {"seconds of `import torch, transformers`": heavy_s, "sizes": []}
    for name, words in COMMANDS.items():
        took_s = processor_s(["-m", *words], repeats)
        found["sizes"].append(
            {
                "name": name,
                "seconds": goal(took_s, at_most=GOAL_S),
                "of importing torch and transformers": took_s / heavy_s,
            }
        )
    return found


def shown(report: dict[str, Any]) -> str:
    """Write the report for people."""
    rows = [["command", "seconds of processor", "of importing torch"]]
    rows += [
        [
            each["name"],
            said(each["seconds"], "at most"),
            f"{each['of importing torch and transformers']:.0%}",
        ]
        for each in report["sizes"]
    ]
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="once each: does it run at all?")
    args = parser.parse_args()
    report = surroundings(["torch", "transformers", "typer"]) | measure(1 if args.quick else 5)
    print(json.dumps(report, indent=1) if args.json else shown(report))


if __name__ == "__main__":
    main()
