"""Moving stores as a user types it: facts on stdout, one error, exit status."""

import json
import shutil
from pathlib import Path

from logitstore.store import open_store
from logitstore.testing import stores, tiny
from tests.kit import dumps
from tests.kit.commands import Run
from tests.kit.made_stores import put


def test_out_and_in_again(run: Run, tmp_path: Path) -> None:
    store, export, back = tmp_path / "s", tmp_path / "e", tmp_path / "b"
    put(store)
    code, out, _ = run("export", store, "--to", "parquet", "--out", export, "--no-input-ids")
    assert (code, out.split(":")[1][:17]) == (0, " 3 Parquet files,")
    code, out, _ = run("import", export, "--out", back, "--dry-run")
    assert out == "an export of 12 rows in 3 shards: whole. Nothing was written.\n"
    code, out, _ = run("import", export, "--out", back, "--json")
    assert (code, json.loads(out)["rows"]) == (0, 12)
    assert stores.tree(back) == stores.tree(store)
    assert run("import", export, "--out", back)[0] == 0  # again: nothing to do
    code, out, _ = run(
        "export", store, "--to", "parquet", "--out", tmp_path / "f", "--json", "--no-input-ids"
    )
    assert json.loads(out)["files"] == 3


def test_a_tokenizer_that_moved(run: Run, tmp_path: Path) -> None:
    put(tmp_path / "s")
    run("export", tmp_path / "s", "--to", "parquet", "--out", tmp_path / "e", "--no-input-ids")
    (tmp_path / "e" / "tokenizer").rename(tmp_path / "t")
    code, _, err = run("import", tmp_path / "e" / "data", "--out", tmp_path / "b")
    assert (code, "tokenizer" in err) == (2, True)
    code, _, _ = run(
        "import", tmp_path / "e", "--out", tmp_path / "b", "--tokenizer", tmp_path / "t"
    )
    assert code == 0
    assert stores.tree(tmp_path / "b") == stores.tree(tmp_path / "s")


def test_a_dump_from_the_command_line(run: Run, tmp_path: Path) -> None:
    teacher = dumps.dumper(tmp_path / "teacher")
    rows = [teacher.prepared(text) for text in tiny.corpus()[:6]]
    rows[0]["target_token_ids"][0].reverse()
    rows[0]["target_logprobs"][0].reverse()
    path = dumps.write_parquet(tmp_path / "kd.parquet", rows)
    words = ["import", path, "--out", tmp_path / "s", "--tokenizer", teacher.folder]
    words += ["--teacher", "tiny/teacher", "--vocab-size", 400]
    code, out, _ = run(*words, "--dry-run")
    assert code == 0
    assert not (tmp_path / "s").exists()
    assert "layout    prepared, lists aligned to the next token\n" in out
    assert "note      1 lists that were not most probable first, sorted\n" in out
    assert "missing   entropy, token_logprob\n" in out
    code, again, _ = run(*words)
    assert (code, again.startswith(out.rstrip("\n"))) == (0, True)
    assert "teacher   tiny/teacher · unknown" in again
    code, out, _ = run(*words, "--json")
    found = json.loads(out)
    assert (found["rows"], found["path"]) == (6, str(tmp_path / "s"))
    assert open_store(tmp_path / "s").provenance["imported"]["unsorted_lists"] == 1
    (tmp_path / "s" / "shards" / "00000.zarr.zip").unlink()
    code, _, err = run("repair", tmp_path / "s", "--capture")
    assert code == 2
    assert f"was imported from {path}, not captured. Run the same `logitstore import …`" in err
    assert run(*words)[0] == 0
    assert run("verify", tmp_path / "s", "--deep")[0] == 0


def test_a_teacher_that_is_a_folder_is_known_by_its_weights(run: Run, tmp_path: Path) -> None:
    from logitstore.models.fingerprint import fingerprint_folder

    teacher = dumps.dumper(tmp_path / "teacher")
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(t) for t in tiny.corpus()[:3]])
    words = ["import", path, "--tokenizer", teacher.folder, "--out"]
    assert run(*words, tmp_path / "a", "--teacher", teacher.folder)[0] == 0
    assert run(*words, tmp_path / "b", "--teacher", "org/name")[0] == 0
    known = [open_store(tmp_path / name).spec.teacher["fingerprint"] for name in ("a", "b")]
    assert known == [fingerprint_folder(teacher.folder), "named:org/name"]


def test_merge_and_subset(run: Run, tmp_path: Path) -> None:
    put(tmp_path / "one")
    stores.write(tmp_path / "a", shards=(0, 2), seal=False)
    stores.write(tmp_path / "b", shards=(1,), seal=False)
    words = ["merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "m"]
    code, out, _ = run(*words, "--json")
    assert (code, json.loads(out)["complete"]) == (0, True)
    assert stores.tree(tmp_path / "m") == stores.tree(tmp_path / "one")
    code, out, _ = run("subset", tmp_path / "m", "--rows", "2:5", "--out", tmp_path / "n", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 3)
    code, out, _ = run("merge", tmp_path / "a", "--out", tmp_path / "x")
    assert code == 2


def test_a_wrong_request_is_one_message_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    put(tmp_path / "s")
    stores.write(tmp_path / "part", shards=(0,), seal=False)
    run("export", tmp_path / "s", "--to", "parquet", "--out", tmp_path / "e", "--no-input-ids")
    shutil.copytree(tmp_path / "s", tmp_path / "full")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years")
    cases = {
        ("export", "s", "--to", "csv", "--out", "x"): "--to is csv, expected parquet or zarr.",
        ("export", "s", "--to", "parquet", "--out", "e", "--no-input-ids"): (
            "<here>/e: is there already, and an export replaces nothing. Choose another --out."
        ),
        ("import", "e", "--out", "x", "--vocab-size", "9"): (
            "<here>/e: is an export of a store and says that itself, so --vocab-size would have no "
            "effect. Leave it out."
        ),
        ("merge", "s", "--out", "x"): ("merge needs two stores or more. Name them before --out."),
        ("subset", "s", "--rows", "7", "--out", "x"): (
            "--rows 7: neither a file nor a range. Give a file with one row number a line, or a "
            "range such as 0:1000."
        ),
        ("subset", "s", "--rows", "0:3", "--out", "taken"): (
            "<here>/taken: the folder holds something else (thesis.tex) and no store. Choose "
            "another --out, or empty the folder."
        ),
        ("subset", "s", "--rows", "0:3", "--out", "x", "--shard-text-bytes", "0"): (
            "--shard-text-bytes is 0, expected 1 or more."
        ),
        ("export", "part", "--to", "parquet", "--out", "x", "--no-input-ids"): (
            "<here>/part: holds 3 of 12 rows. Run the same command that writes it again, to finish "
            "it first."
        ),
    }
    paths = {"s", "e", "part", "x", "taken"}
    for words, says in cases.items():
        before = stores.tree(tmp_path)
        code, out, err = run(*(tmp_path / w if w in paths else w for w in words))
        assert err == f"error: {says}\n".replace("<here>", str(tmp_path)), words
        assert (code, out) == (2, "")
        assert stores.tree(tmp_path) == before
