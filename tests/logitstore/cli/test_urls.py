"""Wherever `logitstore` takes the name of a store, a URL may stand; where none can, it says so."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from logitstore.cli.app import app, main
from logitstore.moving.parquet.export import export_parquet
from logitstore.moving.subset import subset
from logitstore.store import open_store
from logitstore.testing import tiny
from logitstore.testing.buckets import Bucket
from tests.kit.made_stores import put

Run = Callable[..., tuple[int, str, str]]

#: Every command that names a store, in the words that are tried below.
READING = {
    "info": ("info", "{url}", "--full", "--json"),
    "show": ("show", "{url}", "0", "--json"),
    "diff": ("diff", "{url}", "{url}", "--json"),
    "report": ("report", "{url}", "-o", "{new}", "--json"),
    "verify": ("verify", "{url}", "--deep", "--json"),
    "repair": ("repair", "{url}", "--json"),
    "export": ("export", "{url}", "--to", "parquet", "--out", "{new}", "--no-input-ids", "--json"),
    "merge": ("merge", "{url}", "{other}", "--out", "{new}", "--json"),
    "subset": ("subset", "{url}", "--rows", "2:5", "--out", "{new}", "--json"),
    "split": ("split", "{url}", "--eval", "0.3", "--out", "{new}", "--json"),
}
WRITING = {
    "capture": ("capture", "{teacher}", "{rows}", "--top-k", "4", "--out", "{free}", "--json"),
    "import": ("import", "{export}", "--out", "{free}", "--json"),
    "merge": ("merge", "{url}", "{other}", "--out", "{free}", "--json"),
    "subset": ("subset", "{url}", "--rows", "2:5", "--out", "{free}", "--json"),
}
#: What lies on this machine alone: the words, and the URL that must be named as it was typed.
REFUSED = {
    "import": ("import", "{url}", "--out", "{new}"),
    "export": ("export", "{store}", "--to", "parquet", "--out", "{url}"),
    "report": ("report", "{store}", "-o", "{url}"),
    "split": ("split", "{store}", "--eval", "0.3", "--out", "{url}"),
    "push": ("push", "{url}", "hf://datasets/me/it"),
}
NAME_NO_STORE = {"estimate"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["logitstore", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two stores of different rows, an export, a teacher and rows for it: all on this machine."""
    folder = tmp_path_factory.mktemp("here")
    put(folder / "store")
    subset(folder / "store", "0:4", folder / "other")
    export_parquet(folder / "store", folder / "export")
    tokenizer = tiny.unigram()
    tiny.save(folder / "teacher", tiny.llama(len(tokenizer)), tokenizer)
    lines = [json.dumps({"text": text}) for text in tiny.corpus()[:4]]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return {
        name: str(folder / (f"{name}.jsonl" if name == "rows" else name))
        for name in ("store", "other", "export", "teacher", "rows")
    }


@pytest.fixture
def words(
    bucket: Bucket, here: dict[str, str], tmp_path: Path
) -> Callable[[tuple[str, ...]], list[str]]:
    """Fills the names in; the stores of the bucket that are named are those of this machine."""
    names = here | {"free": f"{bucket.url}/made/s", "new": str(tmp_path / "new")}

    def filled(words: tuple[str, ...]) -> list[str]:
        for name, store, prefix in (("url", "store", "runs/s"), ("other", "other", "runs/other")):
            if f"{{{name}}}" in "".join(words) and not names.get(name, "").startswith(bucket.url):
                names[name] = bucket.upload(Path(here[store]), prefix)
        return [word.format(**names) for word in words]

    return filled


Words = Callable[[tuple[str, ...]], list[str]]


@pytest.mark.parametrize("command", READING)
def test_a_store_is_read_by_its_url(run: Run, words: Words, command: str) -> None:
    code, out, err = run(*words(READING[command]))
    assert code == 0, err
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize("command", WRITING)
def test_a_store_is_written_to_a_url(run: Run, words: Words, bucket: Bucket, command: str) -> None:
    code, out, err = run(*words(WRITING[command]))
    assert code == 0, err
    made = open_store(f"{bucket.url}/made/s")
    assert json.loads(out)["path"] == str(made.path) == "s3://a-bucket/made/s"
    assert len(made[0]) > 0
    assert run(*words(WRITING[command]))[0] == 0  # again: nothing to do


def test_a_store_is_exported_to_a_url_as_zarr(run: Run, words: Words, bucket: Bucket) -> None:
    code, out, err = run(*words(("export", "{url}", "--to", "zarr", "--out", "{free}", "--json")))
    assert code == 0, err
    assert json.loads(out)["path"] == "s3://a-bucket/made/s"
    assert "zarr.json" in bucket.tree("made/s")


def test_a_dry_run_looks_at_a_url_and_writes_nothing(
    run: Run, words: Words, bucket: Bucket
) -> None:
    for command in ("capture", "import"):
        code, _, err = run(*words(WRITING[command]), "--dry-run")
        assert code == 0, err
    assert bucket.tree("made") == {}
    code, _, err = run(*words(("import", "{export}", "--out", "hf://x/y", "--dry-run")))
    assert (code, "error: hf://x/y: is on a hub, where no store can be made" in err) == (2, True)


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_in_a_bucket_is_refused_by_the_url_that_was_typed(
    run: Run, words: Words, command: str, tmp_path: Path
) -> None:
    code, out, err = run(*words(REFUSED[command]))
    assert (code, out) == (2, "")
    assert err.startswith("error: s3://a-bucket/runs/s: is in a bucket, but ")
    assert "must be on this machine. Name a place here with" in err
    assert list(tmp_path.glob("*new*")) == []


@pytest.mark.parametrize("command", [*READING, "capture"])
def test_where_there_is_no_store_the_url_is_named_as_it_was_typed(
    run: Run, words: Words, command: str
) -> None:
    wrong = {"capture": ("capture", "{teacher}", "{rows}", "--out", "s3://no-such-bucket/s")}
    typed = [
        w.replace("a-bucket/runs/s", "no-such-bucket/s") for w in words((READING | wrong)[command])
    ]
    code, _, err = run(*typed)
    assert code == 2
    assert "error: s3://no-such-bucket/s" in err
    assert "Traceback" not in err


def test_a_store_in_a_bucket_cannot_be_merged_with_itself(run: Run, words: Words) -> None:
    code, _, err = run(*words(("merge", "{url}", "{url}/", "--out", "{new}")))
    assert (code, "error: s3://a-bucket/runs/s: is given twice" in err) == (2, True)


def test_every_command_is_tried_or_names_no_store() -> None:
    group = typer.main.get_command(app)
    commands = set(group.commands)  # type: ignore[attr-defined]
    assert READING.keys() | WRITING.keys() | REFUSED.keys() | NAME_NO_STORE == commands
