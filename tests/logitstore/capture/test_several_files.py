"""A capture of several files: from the command line, resumed, repaired, evaluated."""

import json
from pathlib import Path

import pytest

import logitstore
from distill import cli as distill_cli
from logitstore.cli.app import main
from logitstore.errors import MismatchError
from logitstore.testing import tiny
from tests.kit.commands import runner
from tests.kit.rows import texts_file

TEXTS = ["The teacher reads.", "A student writes.", "One more row.", "And the last."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.save(tmp_path / "teacher", tiny.llama(300), tiny.byte_bpe(300))
    texts_file(tmp_path / "a.jsonl", TEXTS[:2])
    texts_file(tmp_path / "b.jsonl", TEXTS[2:])
    texts_file(tmp_path / "whole.jsonl", TEXTS)
    return tmp_path


def test_files_and_patterns_are_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    run = runner("logitstore", main, monkeypatch, capsys)
    options = ("--top-k", "8", "--json")
    found = {}
    for out, files in {
        "one": ["whole.jsonl"],
        "two": ["a.jsonl", "b.jsonl"],
        "pattern": ["[ab].jsonl"],
    }.items():
        status, facts, error = run("capture", "teacher", *files, "--out", out, *options)
        assert status == 0, error
        found[out] = json.loads(facts)
        assert found[out]["dataset"]["name"] == " + ".join(files)
    stores = {name: logitstore.open_store(folder / name) for name in found}
    assert len({store.digest for store in stores.values()}) == 1  # the same rows, the same store
    assert len({facts["dataset"]["sha256"] for facts in found.values()}) == 1
    assert stores["two"].provenance["files"] == ["a.jsonl", "b.jsonl"]
    assert "files" not in stores["one"].provenance

    measured = runner("distill", distill_cli.main, monkeypatch, capsys)
    status, run_object, error = measured("evaluate", "teacher", "a.jsonl", "b.jsonl", "--json")
    assert status == 0, error
    whole = json.loads(measured("evaluate", "teacher", "whole.jsonl", "--json")[1])
    assert json.loads(run_object)["bits_per_byte"] == whole["bits_per_byte"]
    assert json.loads(run_object)["evaluation"]["data"] == "a.jsonl + b.jsonl"


def test_a_store_of_several_files_is_gone_on_with_and_repaired(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    made: dict[str, int] = {"top_k": 8, "shard_text_bytes": 20}
    store = logitstore.capture("teacher", ["a.jsonl", "b.jsonl"], "s", **made)
    digest = store.digest
    assert len(store.shards) > 2
    Path("s/DONE").unlink()
    Path("s/shards/00001.zarr.zip").unlink()
    assert logitstore.capture("teacher", "whole.jsonl", "s", **made).digest == digest
    shard = Path("s/shards/00000.zarr.zip")
    shard.write_bytes(shard.read_bytes()[:-5])
    run = runner("logitstore", main, monkeypatch, capsys)
    assert run("repair", "s", "--capture")[0] == 0
    assert logitstore.open_store("s").digest == digest
    Path("s/DONE").unlink()
    with pytest.raises(MismatchError, match="dataset is another"):
        logitstore.capture("teacher", ["b.jsonl", "a.jsonl"], "s", **made)
