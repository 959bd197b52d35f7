"""The command line of one stage: where its JSON goes, and on which device it runs."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.benchmark import surroundings
from tools.gpu.reports import is_whole, read_report
from tools.gpu.timing import Device

PACKAGES = ("torch", "transformers", "liger-kernel", "trl", "accelerate", "numpy", "triton")


def main(measure: Callable[[Device, "Partial"], dict[str, Any]]) -> None:
    """Run a stage and write its report: `{"device", versions, …, "is_whole", "results"}`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    device = Device(cpu=args.cpu)
    partial = Partial(args.out, device)
    results = measure(device, partial)
    partial.write(results, is_whole=not (results.get("left") or "left_out" in results))


class Partial:
    """The report of a stage, written anew whenever more of it is known.

    So a stage that meets its time limit leaves what it had measured until then, and the next run
    goes on there.
    """

    def __init__(self, out: Path, device: Device) -> None:
        self._out = out
        self._about = {**surroundings(PACKAGES), "device": device.facts()}

    def known(self) -> dict[str, Any]:
        """Return the results of a run that was cut off, if it was on such a device."""
        report = read_report(self._out)
        if report is None or is_whole(report) or report["device"] != self._about["device"]:
            return {}
        return dict(report["results"])

    def write(self, results: dict[str, Any], *, is_whole: bool = False) -> None:
        """Replace the report."""
        report = self._about | {"is_whole": is_whole, "results": results}
        temporary = self._out.with_suffix(".new")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(self._out)
