"""From a teacher to a student through a bucket: the commands, as they are typed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import logitstore
from distill.cli import main
from logitstore.testing import tiny
from logitstore.testing.buckets import Bucket
from logitstore.testing.stores import tree
from tests.distill.test_cli import FLAGS
from tests.kit.commands import Run, runner

SETTINGS = ("--top-k", "8", "--shard-text-bytes", "400")
SHARDS = "shards/"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student, data, and the store that a capture into a folder makes."""
    folder = tmp_path_factory.mktemp("here")
    for name, tokenizer in (("teacher", tiny.unigram()), ("student", tiny.byte_bpe())):
        tiny.save(folder / name, tiny.llama(len(tokenizer)), tokenizer)
    rows = [json.dumps({"text": text}) for text in tiny.corpus()[:24]]
    (folder / "data.jsonl").write_text("\n".join(rows))
    made = start(here=folder, out=str(folder / "store"))
    said = made.communicate(timeout=300)[0]
    assert made.returncode == 0, said
    return folder


def start(here: Path, out: str, **variables: str) -> "subprocess.Popen[str]":
    arguments = ["capture", str(here / "teacher"), str(here / "data.jsonl"), "--out", out]
    return subprocess.Popen(
        [sys.executable, "-c", DIES, *arguments, *SETTINGS],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


#: The command; with DIES_AFTER=n it is killed (no handler runs) once it has committed n shards.
DIES = """
import os, signal, sys
from logitstore import cli
from logitstore.writing import writer
n = int(os.environ.get("DIES_AFTER", 0))
write, done = writer.StoreWriter.write_shard, []
def write_shard(self, index, sequences):
    won = write(self, index, sequences)
    done.append(index)
    if len(done) == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return won
writer.StoreWriter.write_shard = write_shard
sys.argv[0] = "logitstore"
cli.main()
"""


def shards(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith(SHARDS)}


@pytest.fixture
def distill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `distill` with the given arguments."""
    return runner("distill", main, monkeypatch, capsys)


@pytest.mark.slow  # four processes that load torch
def test_a_capture_into_a_bucket_is_killed_resumed_and_trained_from(
    bucket: Bucket, here: Path, tmp_path: Path, distill: Run
) -> None:
    url, expected = f"{bucket.url}/runs/s", tree(here / "store")
    killed = start(here, url, DIES_AFTER="2")
    said = killed.communicate(timeout=300)[0]
    assert killed.returncode == -9, said
    assert len(shards(bucket.tree("runs/s"))) == 2
    status, _, err = train(distill, here, url, tmp_path / "early")
    assert status == 2
    assert f"error: {url}: holds" in err
    resumed = start(here, url)
    said = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, said
    found = bucket.tree("runs/s")
    assert shards(found) == shards(expected)
    assert found.keys() == expected.keys()
    status, out, err = train(distill, here, url, tmp_path / "far")
    assert status == 0, err
    near = train(distill, here, str(here / "store"), tmp_path / "near")[1]
    assert same_training(json.loads(out)) == same_training(json.loads(near))


def train(distill: Run, here: Path, store: str, out: Path) -> tuple[int, str, str]:
    model = ("--model_name_or_path", str(here / "student"), "--loss", "alm")
    return distill(
        "train", *model, "--store", store, "--output_dir", str(out), *FLAGS.split(),
        "--dataloader_num_workers", "1", "--json",
    )  # fmt: skip


def same_training(found: dict[str, Any]) -> dict[str, Any]:
    """What two runs on the same records have in common."""
    names = ("steps", "sequences", "store_digest", "train_loss", "kd_loss", "ce_loss")
    return {name: found[name] for name in names if name in found}


@pytest.mark.slow  # two processes that load torch and look every other second
def test_ranks_share_a_bucket(bucket: Bucket, here: Path) -> None:
    url = f"{bucket.url}/s"
    ranks = [
        start(here, url, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert shards(bucket.tree("s")) == shards(tree(here / "store"))
    assert not [name for name in bucket.tree("s") if ".tmp-" in name], "heartbeats are left"
    assert len(bucket.tree("s.journal")) == 2
    assert logitstore.open_store(url).is_complete
