"""The command line of one stage: where its JSON goes, and on which device it runs."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.benchmark import surroundings
from tools.gpu.timing import Device

PACKAGES = ("torch", "transformers", "liger-kernel", "trl", "accelerate", "numpy", "triton")


def main(measure: Callable[[Device, "Partial"], dict[str, Any]]) -> None:
    """Run a stage and write its report: `{"device", versions, …, "results"}`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    device = Device(cpu=args.cpu)
    partial = Partial(args.out, device)
    partial.write(measure(device, partial))


class Partial:
    """The report of a stage, written anew whenever more of it is known.

    So a stage that meets its time limit leaves what it had measured until then.
    """

    def __init__(self, out: Path, device: Device) -> None:
        self._out = out
        self._about = {**surroundings(PACKAGES), "device": device.facts()}

    def write(self, results: dict[str, Any]) -> None:
        """Replace the report."""
        temporary = self._out.with_suffix(".new")
        temporary.write_text(json.dumps(self._about | {"results": results}, indent=1) + "\n")
        temporary.replace(self._out)
