"""OWN_LOSS.md is true: its loss trains from the command line, and its loops run as printed."""

import json
import re
import shlex
import sys
import warnings
from pathlib import Path

import pytest

from logitstore.capture import capture
from logitstore.testing import tiny
from tests.kit.commands import Run
from tests.kit.paths import ROOT

PAGE = (ROOT / "distill" / "OWN_LOSS.md").read_text(encoding="utf-8")


def blocks() -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_every_block_runs_as_printed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, tokenizer in (("teacher", tiny.byte_bpe()), ("student", tiny.unigram())):
        tiny.save(tmp_path / name, tiny.llama(len(tokenizer)), tokenizer)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in tiny.corpus()[:16])
    (tmp_path / "train.jsonl").write_text(lines)
    capture("teacher", "train.jsonl", out="store", top_k=8)
    scope: dict[str, object] = {"__name__": "a_loop"}
    for language, code in blocks():
        if code.startswith("# total.py"):
            assert len([line for line in code.splitlines() if line.strip()]) <= 10
            (tmp_path / "total.py").write_text(code)
        elif language == "bash":
            status, out, err = run(
                *shlex.split(code.replace("\\\n", " "))[1:], "--use_cpu", "--json"
            )
            assert status == 0, err
            found = json.loads(out)
            assert found["loss"] == "total:total_variation"
            assert found["metrics"]["total_variation_loss"] > 0
        else:
            pytest.importorskip("trl")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a library that is only asked here
                exec(code, scope)
    status, out, err = run("compare", "trained-with-my-own", "-o", "page.html")
    assert status == 0, err
    assert "total:total_variation" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "trained-by-trl").is_dir()
