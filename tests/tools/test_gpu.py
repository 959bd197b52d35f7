"""The stages for a CUDA machine run at tiny sizes on a CPU, so that they cannot rot unseen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.paths import ROOT
from tools.gpu.__main__ import STAGES
from tools.gpu.checks import outcomes
from tools.gpu.page import page


def run(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "tools/gpu/run.sh", "--cpu", "--out", str(out), *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "checks"])
def test_a_stage_runs_and_leaves_its_results(tmp_path: Path, stage: str) -> None:
    done = run(tmp_path, "--only", stage)
    assert done.returncode == 0, (tmp_path / f"{stage}.log").read_text()[-2000:]
    found = json.loads((tmp_path / f"{stage}.json").read_text())
    assert found["device"] == {"name": "cpu"}
    assert all(took["seconds"] > 0 for took in found["results"]["contenders"].values())
    assert f"## {stage}" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.slow
def test_the_tests_for_a_device_pass_on_a_cpu(tmp_path: Path) -> None:
    assert run(tmp_path, "--only", "checks").returncode == 0
    results = json.loads((tmp_path / "checks.json").read_text())["results"]
    assert results["failed"] == {}
    assert results["passed"] > 15


def test_a_stage_that_has_results_is_not_run_again(tmp_path: Path) -> None:
    results = {"passed": 1, "failed": {}, "skipped": {}}
    kept = {"device": {"name": "cpu"}, "date": "", "versions": {}, "results": results}
    (tmp_path / "checks.json").write_text(json.dumps(kept))
    done = run(tmp_path, "--only", "checks")
    assert done.returncode == 0
    assert json.loads((tmp_path / "checks.json").read_text()) == kept
    assert not (tmp_path / "checks.log").exists()


def test_failures_are_named_with_their_reason(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite><testcase name='good'/>"
        "<testcase name='bad'><failure message='it was 2&#10;not 1'/></testcase>"
        "<testcase name='out'><skipped message='no device'/></testcase></testsuite></testsuites>"
    )
    found = outcomes(report)
    assert found == {"passed": 1, "failed": {"bad": "it was 2"}, "skipped": {"out": "no device"}}
    about = {"device": {"name": "GPU"}, "date": "2026-01-01", "versions": {}}
    assert "* failed: `bad`: it was 2" in page({"checks": about | {"results": found}})
