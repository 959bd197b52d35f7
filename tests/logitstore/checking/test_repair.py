"""What is damaged moves aside, and only that is redone."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from logitstore import open_store
from logitstore.capture.again import capture_again
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.cli.app import app
from logitstore.errors import CorruptStoreError, IncompleteStoreError, InputError
from logitstore.format.spec import StoreHeader
from logitstore.testing import stores, tiny
from tests.kit.made_stores import put
from tests.logitstore.storage.test_commit_faults import CrashingFs, InjectedCrashError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    put(tmp_path / "s")
    return tmp_path / "s"


def flip(path: Path, at: int = 200) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 4
    path.unlink()
    path.write_bytes(data)


DAMAGES: dict[str, tuple[list[str], int]] = {
    "nothing": ([], 0),
    "a shard": (["shards/00001.zarr.zip"], 1),
    "two shards": (["shards/00000.zarr.zip", "shards/00002.zarr.zip"], 2),
    "the seal": (["DONE"], 0),
    "the index": (["index.parquet"], 0),
    "the tokenizer": (["tokenizer/tokenizer.json"], 0),
    "all but store.json": (["DONE", "tokenizer/special.txt", "shards/00000.zarr.zip"], 1),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_repair_and_capture_again_give_the_bytes_back(store: Path, what: str, how: str) -> None:
    wanted = stores.tree(store)
    inodes = {p: p.stat().st_ino for p in store.rglob("*.zip")}
    names, missing = DAMAGES[what]
    for name in names:
        flip(store / name) if how == "flipped" else (store / name).unlink()
    report = repair_store(store)
    if how == "flipped" or "DONE" not in names:  # without DONE it is just an unfinished store
        assert {d.file for d in report.damaged} == set(names)
    assert report.missing_shards == missing
    assert report.is_complete == (missing == 0 and "tokenizer" not in str(names))
    if not report.is_complete:
        with pytest.raises(IncompleteStoreError):
            open_store(store)
        stores.write(store)  # the same capture again
    assert stores.tree(store) == wanted
    damaged = [store / n for n in names]
    assert all(p.stat().st_ino == i for p, i in inodes.items() if p not in damaged)
    assert verify_store(store, deep=True).damaged == []


def test_damaged_files_and_what_was_wrong_are_kept_beside_the_store(store: Path) -> None:
    shard = store / "shards" / "00001.zarr.zip"
    flip(shard)
    damaged = shard.read_bytes()
    done = (store / "DONE").read_bytes()
    report = repair_store(store)
    kept = stores.tree(store.with_name("s.quarantine") / "1")
    about = json.loads(kept.pop("damage.json"))
    assert [(d["file"], d["rows"]) for d in about] == [("shards/00001.zarr.zip", [3, 6])]
    assert kept["shards/00001.zarr.zip"] == damaged
    assert kept["DONE"] == done
    assert report.moved == ["DONE", "index.parquet", "shards/00001.zarr.zip"]
    stores.write(store)
    flip(shard)
    second = repair_store(store).quarantine
    assert second == store.with_name("s.quarantine") / "2"


def test_a_repair_that_crashes_anywhere_can_be_run_again(store: Path, tmp_path: Path) -> None:
    wanted = stores.tree(store)
    for at in itertools.count():
        copy = Path(shutil.copytree(store, tmp_path / f"crash-{at}" / "s"))
        flip(copy / "shards" / "00001.zarr.zip")
        flip(copy / "index.parquet")
        try:
            repair_store(copy, fs=CrashingFs(at))
            finished = True
        except InjectedCrashError:
            finished = False
        if not finished and (copy / "DONE").exists():
            with pytest.raises(CorruptStoreError):  # still sealed: the damage is still seen
                len(open_store(copy))
        repair_store(copy)
        stores.write(copy)
        assert stores.tree(copy) == wanted
        if finished:
            break
    assert at > 8


def test_a_damaged_shard_of_an_unfinished_store_is_repaired_too(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", shards=(0, 1), seal=False)
    flip(tmp_path / "s" / "shards" / "00001.zarr.zip")
    assert repair_store(tmp_path / "s").missing_shards == 2
    stores.write(tmp_path / "s")
    put(tmp_path / "whole")
    assert stores.tree(tmp_path / "s") == stores.tree(tmp_path / "whole")


def test_a_damaged_description_is_said_to_be_beyond_repair(store: Path) -> None:
    before = (store / "DONE").read_bytes()
    flip(store / "store.json", 60)
    with pytest.raises(CorruptStoreError, match=r"store\.json.*[Rr]estore the file from a copy"):
        repair_store(store)
    assert (store / "DONE").read_bytes() == before


def test_the_command_says_what_it_moved_and_what_is_left_to_do(store: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["repair", str(store)]).stdout == f"{store} is whole.\n"
    flip(store / "shards" / "00001.zarr.zip")
    result = run(app, ["repair", str(store), "--json"])
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert (said["missing_shards"], said["is_complete"]) == (1, False)
    assert "moved to" in result.stderr
    assert "capture …` again" in run(app, ["repair", str(store)]).stdout


def test_capturing_again_needs_to_know_how_it_was_captured(store: Path) -> None:
    with pytest.raises(InputError, match="does not say how it was captured"):
        capture_again(store)


def test_a_store_that_says_how_it_was_captured_is_captured_again(tmp_path: Path) -> None:
    import logitstore

    teacher = tiny.save(tmp_path / "t", tiny.llama(400), tiny.byte_bpe(400, bos=True))
    data, path = tmp_path / "d.txt", tmp_path / "s"
    data.write_text("\n".join(tiny.corpus()[36:]))
    settings = {"top_k": 8, "shard_text_bytes": 400}
    logitstore.capture(str(teacher), str(data), path, **settings)
    wanted = stores.tree(path)
    flip(path / "shards" / "00001.zarr.zip")
    result = CliRunner().invoke(app, ["repair", str(path), "--capture"])
    assert result.exit_code == 0, result.output
    assert stores.tree(path) == wanted


def test_a_store_cannot_ask_for_a_models_code_to_be_run(store: Path) -> None:
    """What a file says is not what the user says: a store may come from anybody."""
    header = StoreHeader.read(store)
    evil = header.provenance | {
        "teacher": "somebody/evil",
        "dataset": "somebody/data",
        "settings": {"trust_remote_code": True},
    }
    (store / "store.json").write_bytes(StoreHeader(header.spec, header.plan, evil).to_bytes())
    with pytest.raises(InputError, match=r"cannot decide.*trust_remote_code"):
        capture_again(store)
