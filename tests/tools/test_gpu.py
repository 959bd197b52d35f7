"""The stages for a CUDA machine run at tiny sizes on a CPU, so that they cannot rot unseen."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.forks import forked
from tests.kit.paths import ROOT
from tools.gpu import losses, real
from tools.gpu.checks import outcomes
from tools.gpu.page import page
from tools.gpu.reports import is_whole
from tools.gpu.stage import Partial
from tools.gpu.timing import Device
from tools.loss_contenders import IN_FORWARD
from tools.real.settings import GPU, QUICK


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
    done = run(tmp_path, "--only", "losses")
    assert done.returncode == 0, (tmp_path / "losses.log").read_text()[-2000:]
    assert_measured(json.loads((tmp_path / "losses.json").read_text()), "losses")
    assert "## losses" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.parametrize("stage", ["capture", "steps"])
def test_a_stage_measures_every_contender(tmp_path: Path, stage: str) -> None:
    out, device = tmp_path / "found.json", Device(cpu=True)

    def measure() -> None:
        partial = Partial(out, device)
        partial.write(importlib.import_module(f"tools.gpu.{stage}").measure(device, partial))

    forked(measure)  # a stage silences logging and puts clocks into classes
    assert_measured(json.loads(out.read_text()), stage)


def test_a_stage_that_was_cut_off_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, device = tmp_path / "losses.json", Device(cpu=True)
    measured: list[str] = []
    names = {"a": "a", "b": "b", IN_FORWARD: IN_FORWARD}
    monkeypatch.setattr(losses, "contenders", lambda _: names)

    def one(name: str, *_: Any) -> dict[str, float]:
        if name == "b" and "b" not in measured:
            measured.append(name)
            raise TimeoutError
        measured.append(name)
        return {"seconds": 1.0, "peak_bytes": 1.0}

    monkeypatch.setattr(losses, "one", one)
    with pytest.raises(TimeoutError):
        losses.measure(device, Partial(out, device))
    cut_off = json.loads(out.read_text())
    assert not is_whole(cut_off)
    assert "Cut off" in page({"losses": cut_off})
    again = losses.measure(device, Partial(out, device))
    assert measured == ["a", "b", "b", IN_FORWARD]
    Partial(out, device).write(again, is_whole=True)
    assert is_whole(json.loads(out.read_text()))
    assert Partial(out, device).known() == {}  # whole: another run measures all of it


def test_what_another_device_has_measured_is_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "steps.json"
    Partial(out, Device(cpu=True)).write({"contenders": {"ce": {}}})
    report = json.loads(out.read_text())
    assert Partial(out, Device(cpu=True)).known() == {"contenders": {"ce": {}}}
    out.write_text(json.dumps(report | {"device": {"name": "another"}}))
    assert Partial(out, Device(cpu=True)).known() == {}


def test_students_of_a_real_teacher_are_left_out_where_their_parts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.real_parts.FOLDER", tmp_path / "nothing")
    why = real.lacks(tmp_path, GPU)
    assert "tools.real_parts" in why
    assert real.lacks(tmp_path, QUICK) == ""
    about = {"device": {"name": "GPU"}, "date": "2026-01-01", "versions": {}}
    assert f"Left out: {why}" in page({"real": about | {"results": {"left_out": why}}})


@pytest.mark.slow
def test_students_of_a_tiny_teacher_are_trained_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REAL_PARTS", str(tmp_path / "parts"))
    for trained in ("2", "0"):
        assert run(tmp_path, "--only", "real", "--again").returncode == 0
        shown = (tmp_path / "RESULTS.md").read_text()
        assert f"{trained} students were trained in the last run, 0 are left." in shown
    assert "| live KL | 1 |" in shown


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
