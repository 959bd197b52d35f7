"""Run the tests marked `gpu` and count their outcomes."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from tools.gpu import stage
from tools.gpu.timing import Device

FOLDER = Path("tests/gpu")


def measure(device: Device, partial: stage.Partial) -> dict[str, Any]:
    """Run one file of tests after the other; those of a run that was cut off are not run again."""
    known = partial.known()
    results = {"files": [], "passed": 0, "failed": {}, "skipped": {}} | known
    for file in sorted(path.name for path in FOLDER.glob("test_*.py")):
        if file not in results["files"]:
            found = run(file, device)
            results["passed"] += found["passed"]
            for kind in ("failed", "skipped"):
                results[kind] |= found[kind]
            results["files"].append(file)
            partial.write(results)
    return results


def run(file: str, device: Device) -> dict[str, Any]:
    """Run the tests of a file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        environment = os.environ | ({"LOGITSTORE_GPU_TESTS": "cpu"} if device.is_cpu else {})
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(FOLDER / file)]
        # Other versions of the libraries warn of other things; here that is no failure.
        options = ["-p", "no:cacheprovider", "-o", "filterwarnings=default", f"--junitxml={report}"]
        subprocess.run([*command, *options], env=environment, check=False)
        return outcomes(report)


def outcomes(report: Path) -> dict[str, Any]:
    """Count passed tests, and name those that failed or were skipped, with the reason."""
    failed, skipped, passed = {}, {}, 0
    for case in ElementTree.parse(report).iter("testcase"):
        reasons = {child.tag: child.get("message", "") for child in case}
        if "skipped" in reasons:
            skipped[case.get("name", "?")] = reasons["skipped"]
        elif {"failure", "error"} & reasons.keys():
            why = reasons.get("failure") or reasons.get("error", "")
            failed[case.get("name", "?")] = why.splitlines()[0][:300] if why else ""
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": skipped}


if __name__ == "__main__":
    stage.main(measure)
