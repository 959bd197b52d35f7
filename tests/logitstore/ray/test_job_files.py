"""The job files of docs/capture: readable, with commands and flags that exist, and they run."""

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import logitstore
from logitstore.cli.app import app
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit.paths import ROOT
from tests.kit.ray_cluster import ENVIRONMENT
from tests.kit.rows import texts_file

FOLDER = ROOT / "docs" / "capture"
SLURM = (FOLDER / "capture.slurm").read_text()
SKY: dict[str, Any] = yaml.safe_load((FOLDER / "capture.sky.yaml").read_text())
#: The keys that SkyPilot's page "SkyPilot YAML" has; of resources those that are used here.
SKY_KEYS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes"}
SKY_KEYS |= {"file_mounts", "setup", "run", "config"}
SKY_RESOURCES = {"accelerators", "use_spot", "infra", "cpus", "memory", "disk_size"}
SKY_VARIABLES = {"SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"}
#: What the stub of `srun` leaves out: the options of srun itself.
STUBS = {
    "scontrol": "echo here",
    "srun": 'while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done; exec "$@"',
    "hostname": "echo 127.0.0.1",
}


@pytest.mark.parametrize("script", [SLURM, SKY["run"], SKY["setup"]], ids=["slurm", "run", "setup"])
def test_a_shell_can_read_it(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_file_of_skypilot_has_the_keys_that_it_knows() -> None:
    assert set(SKY) <= SKY_KEYS
    assert set(SKY["resources"]) <= SKY_RESOURCES
    assert set(re.findall(r"\$\{?(SKYPILOT_\w+)", SKY["run"])) <= SKY_VARIABLES
    known = {*SKY["envs"], *SKY["secrets"], "head", "port", "ray", "status", "?"}
    used = set(re.findall(r"\$\{?([a-zA-Z]\w*)", SKY["run"])) - SKY_VARIABLES
    assert used <= known


@pytest.mark.parametrize("script", [SLURM, SKY["run"]], ids=["slurm", "sky"])
def test_its_command_is_one_of_ours_with_flags_that_exist(script: str) -> None:
    (line,) = re.findall(r"^\s*(logitstore capture .*)$", script.replace("\\\n", " "), re.M)
    words = shlex.split(line.split("||")[0].replace("&", ""))
    found: Any = typer.main.get_command(app)
    flags = {flag for each in found.commands["capture"].params for flag in each.opts}
    assert {word for word in words if word.startswith("--")} <= flags
    assert "--ray" in words


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slurm", "sky"])
def test_the_script_itself_runs_on_one_node(kind: str, teacher: Path, tmp_path: Path) -> None:
    """`srun` and `scontrol` are stubs here; Ray and the capture are not."""
    port = 6397
    texts_file(tmp_path / "rows.jsonl", tiny.corpus())
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}\n")
        (stubs / name).chmod(stat.S_IRWXU)
    (tmp_path / "activate").write_text("")
    script = SLURM if kind == "slurm" else SKY["run"].replace("port=6379", f"port={port}")
    script = script.replace('"${VENV:-/shared/venv}/bin/activate"', str(tmp_path / "activate"))
    given = {
        "TEACHER": str(teacher),
        "DATA": str(tmp_path / "rows.jsonl"),
        "STORE": str(tmp_path / "s"),
        "CAPTURE_OPTIONS": "--shard-text-bytes 400 --cpus-per-teacher 1",
        "PORT": str(port),
        "SLURM_JOB_NODELIST": "here",
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        "SKYPILOT_NODE_RANK": "0",
        "RAY_AUTH_TOKEN": "of-a-test-" + "0" * 32,
    }
    programs = os.pathsep.join([str(stubs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | ENVIRONMENT | given | {"PATH": programs, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash"], input=script, env=environment, text=True, capture_output=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    settings: Any = {"top_k": 64, "shard_text_bytes": 400}
    logitstore.capture(teacher, given["DATA"], tmp_path / "one", **settings)
    assert tree(tmp_path / "s") == tree(tmp_path / "one")
