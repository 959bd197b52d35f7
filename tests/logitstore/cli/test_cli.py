"""The `logitstore` command as a stranger meets it: facts on stdout, one error, exit status."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from logitstore.console.terminal import printable
from logitstore.testing import stores, tiny
from tests.kit.commands import Run
from tests.kit.made_stores import put
from tests.kit.rows import texts_file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return texts_file(tmp_path / "rows.jsonl", tiny.corpus()[36:])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    put(tmp_path / "s", stores.spec(temperatures=(2.0,)))
    return tmp_path / "s"


def test_capture_then_look_at_it(run: Run, teacher: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "my-store"
    command = ["capture", teacher, data, "--out", out, "--top-k", 8, "--temperature", 2]
    code, text, _ = run(*command, "--temperature", 4, "--max-tail", 0.9)
    assert code == 0
    assert "complete" in text
    assert "log-normalisers at 2, 4" in text

    code, text, _ = run("info", out, "--json")
    facts = json.loads(text)
    assert (facts["rows"], facts["records"] > 100, facts["statuses"]) == (12, True, {"ok": 12})
    assert facts["capture"] == {
        "top_k": 8,
        "max_tail": 0.9,
        "ids": True,
        "temperatures": [2.0, 4.0],
        "logit_std": False,
        "draws": 0,
    }
    parts = sum(facts["bytes_per_token_by_field"].values())
    assert 0 < parts < facts["bytes_per_token"]
    assert run("verify", out, "--deep")[:2] == (0, "1 shard, 12 rows: whole\n")

    code, text, _ = run("show", out, 8, "--json")
    shown = json.loads(text)
    assert shown["segments"][0]["text"] == tiny.corpus()[44]
    assert "".join(t["text"] for t in shown["tokens"]).startswith("emoji: ")
    best = shown["tokens"][0]["entries"][0]
    assert best["token"] is not None
    assert 0 < best["p"] < 1
    assert run("capture", *command[1:], "--temperature", 4, "--max-tail", 0.9)[0] == 0


def test_module_and_script_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("logitstore")
    texts = [
        subprocess.run([*command, "info", "--help"], capture_output=True, text=True, check=True)
        for command in ([sys.executable, "-m", "logitstore"], [str(script)])
    ]
    assert "Usage: logitstore info" in texts[0].stdout
    assert "Usage: logitstore info" in texts[1].stdout


def test_text_that_a_terminal_would_obey_is_shown_escaped(run: Run, tmp_path: Path) -> None:
    assert printable("a\x1b[31mred\u202eb\n") == r"a\x1b[31mred\u202eb\n"
    put(tmp_path / "s")
    _, out, _ = run("show", tmp_path / "s", 0)
    assert "\x1b" not in out


def damage(path: Path, how: Callable[[bytes], bytes]) -> None:
    path.write_bytes(how(path.read_bytes()))


def flip(data: bytes) -> bytes:
    return data[:200] + bytes([data[200] ^ 1]) + data[201:]


def test_wrong_stores_are_one_clear_error_each(run: Run, store: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(store, tmp_path / name))

    newer = broken("newer")
    body = json.loads((newer / "store.json").read_text()) | {"version": 9}
    (newer / "store.json").write_text(json.dumps(body))
    unfinished = broken("unfinished")
    (unfinished / "DONE").unlink()
    (unfinished / "shards" / "00002.zarr.zip").unlink()
    missing = broken("missing")
    (missing / "shards" / "00001.zarr.zip").unlink()
    cut = broken("cut")
    damage(cut / "shards" / "00000.zarr.zip", lambda d: d[:-100])
    flipped = broken("flipped")
    damage(flipped / "shards" / "00000.zarr.zip", flip)
    index = broken("index")
    damage(index / "index.parquet", flip)

    cases = {
        (tmp_path, "info"): "no store.json of a logit store here.*logitstore capture",
        (
            newer,
            "info",
        ): "format version 9, .* knows versions 1 to 2.*pip install --upgrade",
        (unfinished, "info"): "holds 7 of 12 rows.*--allow-partial",
        (missing, "info"): r"00001.zarr.zip: the file is missing, with rows 3 to 6.* repair",
        (cut, "show"): r"00000.zarr.zip: rows 0 to 2: the end record.*logitstore verify",
        (flipped, "show"): r"00000.zarr.zip: rows? 0.*logitstore verify",
        (index, "info"): "index.parquet: it is not the file that was sealed.*logitstore repair",
    }
    for (path, command), says in cases.items():
        before = stores.tree(path)
        code, out, err = run(command, path, *(["0"] if command == "show" else []))
        assert (code, out) == (2, ""), path
        assert_one_error(err, says)
        assert stores.tree(path) == before


def assert_one_error(err: str, says: str) -> None:
    import re

    assert err.startswith("error: ") or "\nerror: " in err
    assert "Traceback" not in err
    assert re.search(says, err.replace("\n", " ")), err


def test_wrong_datasets_and_folders_are_one_clear_error_each(
    run: Run, teacher: Path, data: Path, tmp_path: Path
) -> None:
    columns = tmp_path / "columns.jsonl"
    columns.write_text(json.dumps({"question": "?", "reply": "!"}))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Größe\n".encode("latin-1"))
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("years")
    cases = {
        (columns, "s1", ()): "question.*reply",
        (latin, "s2", ()): "UTF-8",
        (tmp_path / "nowhere.jsonl", "s3", ()): "nowhere",
        (data, "occupied", ()): r"holds something else \(thesis.tex\).*--out",
        (data, "s4", ("--top-k", 401)): "--top-k is 401.*vocabulary of 400",
        (data, "s5", ("--text-column", "body")): "body",
    }
    for (dataset, out, more), says in cases.items():
        before = stores.tree(tmp_path)
        code, text, err = run("capture", teacher, dataset, "--out", tmp_path / out, *more)
        assert (code, text) == (2, ""), err
        assert_one_error(err, says)
        assert stores.tree(tmp_path) == before


def test_a_sequence_that_is_not_there(run: Run, store: Path) -> None:
    code, _, err = run("show", store, 12)
    assert code == 2
    assert_one_error(err, r"there is no sequence 12; it holds 0 to 11")


def test_bad_usage_is_exit_2(run: Run) -> None:
    assert run("capture")[0] == 2
    assert run("nonsense")[0] == 2
