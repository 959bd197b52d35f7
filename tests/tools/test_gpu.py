"""The stages for a CUDA machine run at tiny sizes on a CPU, so that they cannot rot unseen."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.paths import ROOT
from tools.gpu.checks import outcomes
from tools.gpu.page import page
from tools.gpu.stage import Partial
from tools.gpu.timing import Device


def run(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "tools/gpu/run.sh", "--cpu", "--out", str(out), *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_measured(found: dict[str, Any], stage: str) -> None:
    assert found["device"] == {"name": "cpu"}
    assert all(took["seconds"] > 0 for took in found["results"]["contenders"].values())
    assert f"## {stage}" in page({stage: found})


def test_a_stage_runs_in_a_process_and_leaves_its_results(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "capture")
    assert done.returncode == 0, (tmp_path / "capture.log").read_text()[-2000:]
    assert_measured(json.loads((tmp_path / "capture.json").read_text()), "capture")
    assert "## capture" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.parametrize("stage", ["losses", "steps"])
def test_a_stage_measures_every_contender(tmp_path: Path, stage: str) -> None:
    out, device = tmp_path / "found.json", Device(cpu=True)
    partial = Partial(out, device)
    partial.write(importlib.import_module(f"tools.gpu.{stage}").measure(device, partial))
    assert_measured(json.loads(out.read_text()), stage)


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
