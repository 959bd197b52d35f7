"""`distill env`: enough for a bug report, and nothing about whose machine it is."""

import builtins
import getpass
import json
import os
import platform
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill import cli, environment


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["distill", "env", *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    return out


def test_versions_and_devices_are_told_in_both_forms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(printed(monkeypatch, capsys, "--json"))
    assert found["python"].startswith(platform.python_version())
    for name in ("logitstore", "torch", "transformers", "tokenizers", "datasets", "accelerate"):
        assert found["packages"][name] == version(name)
    assert found["cpus"]["usable"] >= 1
    assert found["torch"]["threads"] == torch.get_num_threads()
    text = printed(monkeypatch, capsys)
    for line in (f"torch          {version('torch')}", f"numpy          {version('numpy')}"):
        assert line in text
    assert f"threads {torch.get_num_threads()}" in text


def test_nothing_of_the_users_is_in_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-of-mine")
    monkeypatch.chdir(tmp_path)
    values = {v for k, v in os.environ.items() if len(v) > 5 and "/" in v} | {
        "hf_secret",
        "of-mine",
    }
    private = {socket.gethostname(), str(tmp_path), str(Path.home()), sys.prefix, *values}
    for text in (printed(monkeypatch, capsys), printed(monkeypatch, capsys, "--json")):
        assert [each for each in private if each in text] == []
        assert getpass.getuser() not in text.replace("\n", " ").split()
        assert platform.release() not in text


def test_accelerators_are_listed_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000, major=9, minor=0)
    module = SimpleNamespace(get_device_properties=lambda i: about)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    found = environment.facts()
    assert [d["device"] for d in found["devices"]] == ["cuda:0", "cuda:1"]
    assert found["devices"][1]["capability"] == [9, 0]
    assert "cuda:1         NVIDIA H200, 150.0 GB" in environment.table(found)


def test_a_backend_that_tells_nothing_of_its_device_is_listed_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: SimpleNamespace())
    assert "mps:0          unnamed" in environment.table(environment.facts())


def test_without_a_torch_that_works_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def broken(name: str, *args: Any, **more: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so: cannot open shared object file in /home/me")
        return imports(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", broken)
    found = environment.facts()
    assert found["torch"] == {"error": "OSError"}
    text = environment.table(found)
    assert "error OSError" in text
    assert "/home/me" not in text


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    found = environment.facts()
    assert found["packages"]["no-such-package"] is None
    assert "not installed" in environment.table(found)
