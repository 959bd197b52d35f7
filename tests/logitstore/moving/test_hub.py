"""A store on the hub: whole or not there at all, gone on with, and read as any other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import logitstore
from logitstore.checking.verify import verify_store
from logitstore.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    InputError,
    MismatchError,
    MissingLibraryError,
    NotAStoreError,
    StorageError,
)
from logitstore.moving.hub import repository
from logitstore.moving.hub.push import push
from logitstore.store import open_store
from logitstore.testing import stores, tiny
from tests.kit import fake_hub
from tests.kit.commands import Run
from tests.kit.fake_hub import Hub
from tests.kit.made_stores import put
from tests.kit.rows import texts_file

#: How `huggingface_hub` hands bytes to its client, which would have them otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TO, KEY = "hf://datasets/me/it", "datasets/me/it"
TOKEN = "hf_a_token_that_nobody_may_see"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, which the hub's client takes for the one that there is."""
    with fake_hub.for_client(monkeypatch, TOKEN) as found:
        yield found


def test_a_store_on_the_hub_is_the_store(hub: Hub, tmp_path: Path) -> None:
    put(tmp_path / "s")
    done = push(tmp_path / "s", TO)
    tree = stores.tree(tmp_path / "s")
    there = dict(hub.repos[KEY])
    assert "logitstore" in there.pop("README.md").decode()
    assert there == tree
    assert hub.private[KEY] is True
    assert done["files"] == len(tree) + 1
    assert done["file_bytes"] == sum(map(len, tree.values()))
    far, near = open_store(TO, cache=tmp_path / "cache"), open_store(tmp_path / "s")
    assert far.is_complete
    assert [r.token_ids.tolist() for r in far] == [r.token_ids.tolist() for r in near]
    assert far.text(3) == near.text(3)


@pytest.mark.parametrize("part", ["hidden", "boundaries"])
def test_what_lies_beside_the_records_goes_with_them(hub: Hub, tmp_path: Path, part: str) -> None:
    rows = texts_file(tmp_path / "rows.jsonl", tiny.corpus()[:3])
    for name, tokenizer in (("teacher", tiny.byte_bpe()), ("student", tiny.unigram())):
        tiny.save(tmp_path / name, tiny.llama(len(tokenizer)), tokenizer)
    asked: dict[str, dict[str, Any]] = {
        "hidden": {"hidden": ["last"], "with_lm_head": True},
        "boundaries": {"boundaries_of": str(tmp_path / "student")},
    }
    how = {"top_k": 4, "self_test": False} | asked[part]
    logitstore.capture(tmp_path / "teacher", str(rows), tmp_path / "s", **how)
    push(tmp_path / "s", TO)
    there = {path: data for path, data in hub.repos[KEY].items() if path != "README.md"}
    assert there == stores.tree(tmp_path / "s")
    assert part in {path.split("/")[0] for path in there}
    assert not verify_store(open_store(TO, cache=tmp_path / "cache").path).damaged


def test_what_makes_it_a_store_comes_last_and_together(hub: Hub, tmp_path: Path) -> None:
    put(tmp_path / "s")
    push(tmp_path / "s", TO)
    *first, last = hub.commits
    assert sorted(last) == ["DONE", "README.md", "index.parquet", "store.json"]
    assert all(path.startswith(("shards/", "tokenizer/")) for c in first for path in c)


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
def test_an_upload_that_was_stopped_is_no_store_and_goes_on(
    hub: Hub, tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_MOST_FILES", 2)
    put(tmp_path / "s")
    hub.fails_at = fails_at
    with pytest.raises(StorageError, match=r"hf://datasets/me/it: .*then run the same command"):
        push(tmp_path / "s", TO)
    assert len(hub.commits) == fails_at
    with pytest.raises(NotAStoreError):
        open_store(TO, cache=tmp_path / "cache")
    hub.fails_at, sent = None, len(hub.uploads)
    push(tmp_path / "s", TO)
    assert len(hub.commits) == 4  # what was committed is not committed again
    assert sent + len(hub.uploads[sent:]) == 4, "three shards and the index, each sent once"
    assert open_store(TO, cache=tmp_path / "cache").is_complete


def test_the_same_store_again_is_nothing_to_do_and_another_is_refused(
    hub: Hub, tmp_path: Path
) -> None:
    put(tmp_path / "s")
    put(tmp_path / "other", stores.spec(top_k=3))
    push(tmp_path / "s", TO)
    before, commits = dict(hub.repos[KEY]), len(hub.commits)
    push(tmp_path / "s", TO)
    assert len(hub.commits) == commits
    with pytest.raises(MismatchError, match=r"holds another store \(digest .* Choose another name"):
        push(tmp_path / "other", TO)
    assert hub.repos[KEY] == before


def test_shards_of_an_upload_that_was_given_up_do_not_stay(hub: Hub, tmp_path: Path) -> None:
    put(tmp_path / "s")
    hub.repos[KEY] = {"shards/00007.zarr.zip": b"old", "notes.txt": b"mine"}
    push(tmp_path / "s", TO)
    assert "shards/00007.zarr.zip" not in hub.repos[KEY]
    assert hub.repos[KEY]["notes.txt"] == b"mine"
    assert open_store(TO, cache=tmp_path / "cache").is_complete


def test_a_card_that_somebody_wrote_is_kept_and_ours_is_renewed(hub: Hub, tmp_path: Path) -> None:
    put(tmp_path / "s")
    hub.repos[KEY] = {"README.md": b"# Mine\n"}
    assert push(tmp_path / "s", TO)["card"] is False
    assert hub.repos[KEY]["README.md"] == b"# Mine\n"
    del hub.repos[KEY]["README.md"]
    push(tmp_path / "s", TO)
    push(tmp_path / "s", TO, licence="apache-2.0")
    assert b'license: "apache-2.0"' in hub.repos[KEY]["README.md"]


def test_the_card_says_what_it_is_how_exact_and_how_to_read_it(hub: Hub, tmp_path: Path) -> None:
    """Names of a store are anybody's: they stay text, and a path is nobody else's business."""
    hostile = "/home/alice/x](http://evil) <script>|`\n---\nlicense: mit"
    put(tmp_path / "s")
    header = json.loads((tmp_path / "s/store.json").read_text())
    header["provenance"] |= {"teacher": hostile, "dataset": "me/data"}
    from logitstore.moving.hub import card

    store = open_store(tmp_path / "s")
    store.provenance = header["provenance"]
    text = card.card(store, TO, None)
    _, front, body = text.split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["license"] == "unknown"
    assert said["viewer"] is False
    assert "logitstore" in said["tags"]
    assert "/home" not in text
    assert "<script" not in body
    assert "](" not in body
    assert "me/data" in body
    assert re.search(r"\| records \| 68 tokens, 6", body)
    assert "KL 2&" in body or "KL 2" in body
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")
    assert len(code[1].strip().splitlines()) <= 4
    assert f"distill train --model_name_or_path STUDENT --store {TO} " in body


def test_only_what_belongs_to_a_store_is_sent_and_no_token_is_kept(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "s")
    (tmp_path / "s/.env").write_text("SECRET=1")
    (tmp_path / "s/shards/notes.txt").write_text("SECRET=2")
    with pytest.MonkeyPatch.context() as unchecked:  # `verify` names them; here they must not go
        unchecked.setattr("logitstore.moving.hub.push._check_whole", lambda _: None)
        push(tmp_path / "s", TO)
    sent = b"".join(hub.repos[KEY].values())
    assert b"SECRET" not in sent
    assert f"Bearer {TOKEN}" in hub.tokens
    assert TOKEN.encode() not in sent
    assert TOKEN not in "".join(capfd.readouterr())


def test_what_is_not_finished_or_not_whole_is_not_published(hub: Hub, tmp_path: Path) -> None:
    stores.write(tmp_path / "part", shards=(0,), seal=False)
    with pytest.raises(IncompleteStoreError):
        push(tmp_path / "part", TO)
    put(tmp_path / "s")
    shard = tmp_path / "s/shards/00001.zarr.zip"
    data = bytearray(shard.read_bytes())
    data[500] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"is damaged .* so nothing was uploaded"):
        push(tmp_path / "s", TO)
    assert hub.repos == {}


def test_who_may_not_write_is_told_where_a_token_is_looked_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "s")
    monkeypatch.delenv("HF_TOKEN")
    hub.needs_token = True
    with pytest.raises(StorageError, match=r"HF_TOKEN or `hf auth login`"):
        push(tmp_path / "s", TO)


@pytest.mark.parametrize(
    "address", ["hf://me/it", "hf://datasets/it", "me/it", "s3://b/it", "hf://datasets/me/it/x"]
)
def test_an_address_is_a_whole_one(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match=r"is no address of a dataset on the hub\. Give hf://"):
        push(tmp_path / "none", address)


def test_a_licence_is_a_name_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--license is a: b, expected the hub's name"):
        push(tmp_path / "none", TO, licence="a: b")


def test_without_the_hubs_client_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingLibraryError, match=r"needs huggingface_hub.*logitstore\[train\]"):
        repository.Repository.of(TO, "dataset").fill({}, {}, public=False)


def test_from_the_command_line(hub: Hub, run: Run, tmp_path: Path) -> None:
    put(tmp_path / "s")
    code, out, _ = run("push", tmp_path / "s", TO, "--public", "--license", "mit")
    assert (code, out[:29]) == (0, "hf://datasets/me/it: 9 files,")
    assert hub.private[KEY] is False
    code, out, _ = run("push", tmp_path / "s", TO, "--json")
    found: dict[str, Any] = json.loads(out)
    assert (code, found["path"], found["files"]) == (0, TO, 9)


def test_a_student_goes_with_its_card_and_without_what_nobody_may_load(
    hub: Hub, tmp_path: Path
) -> None:
    from distill.report.model_card import card
    from distill.report.push import push as push_student

    folder = tmp_path / "trained"
    (folder / "checkpoint-4").mkdir(parents=True)
    run = {"name": "t", "loss": "uld:1", "store": ["hf://datasets/me/it@v1:0.5", "mine"]}
    text = card(run | {"base_model": "some/base"})
    files = {
        "config.json": "{}",
        "model.safetensors": "weights",
        "tokenizer.json": "{}",
        "results.json": "{}",
        "README.md": text,
        "training_args.bin": "pickled",
        "checkpoint-4/optimizer.pt": "pickled",
        ".secret.json": "{}",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["base_model"], front["datasets"]) == ("some/base", ["me/it"])
    push_student(folder, "hf://me/student")
    there = hub.repos["models/me/student"]
    assert sorted(there) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "results.json",
        "tokenizer.json",
    ]
    assert hub.commits[-1] == ["config.json", "README.md"]
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(InputError, match="holds no student"):
        push_student(folder, "hf://me/student")
    with pytest.raises(
        InputError, match=r"no address of a model on the hub\. Give hf://OWNER/NAME"
    ):
        push_student(folder, TO)
