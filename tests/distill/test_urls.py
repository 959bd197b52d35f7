"""Wherever `distill` takes the name of a store, a URL may stand; where none can, it says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from distill.cli import app
from logitstore.capture import capture
from logitstore.testing import tiny
from logitstore.testing.buckets import Bucket
from tests.distill.test_cli import FLAGS
from tests.kit.commands import Run

#: Every command that names a store, in the words that are tried below.
READING = {
    "train": (
        "train --model_name_or_path {student} --store {url} --eval_store {url} --loss alm "
        "--output_dir {new} --json " + FLAGS
    ),
    "evaluate": "evaluate {student} --store {url} --metrics agreement --json",
    "coverage": "coverage {url} {student} --json",
    "select": "select {url} --by surprise --keep 0.5 -o {new} --json",
}
NAME_NO_STORE = {"compare", "env", "push"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, and a store of a teacher."""
    folder = tmp_path_factory.mktemp("here")
    teacher, student = tiny.unigram(), tiny.byte_bpe()
    tiny.save(folder / "teacher", tiny.llama(len(teacher), seed=7), teacher)
    tiny.save(folder / "student", tiny.llama(len(student)), student)
    rows = [json.dumps({"text": text}) for text in tiny.corpus()[:12]]
    (folder / "data.jsonl").write_text("\n".join(rows))
    capture(str(folder / "teacher"), str(folder / "data.jsonl"), out=folder / "store", top_k=8)
    return folder


Words = Callable[[str, str], list[str]]


@pytest.fixture
def words(here: Path, tmp_path: Path) -> Words:
    names = {"student": str(here / "student"), "new": str(tmp_path / "new")}
    return lambda words, url: words.format(**names, url=url).split()


@pytest.mark.parametrize("command", READING)
def test_a_store_is_read_by_its_url_as_from_a_folder(
    run: Run, bucket: Bucket, here: Path, words: Words, command: str
) -> None:
    url = bucket.upload(here / "store", "runs/s")
    status, far, err = run(*words(READING[command], url))
    assert status == 0, err
    assert isinstance(json.loads(far), dict)
    assert url in far


@pytest.mark.parametrize("command", READING)
def test_where_there_is_no_store_the_url_is_named_as_it_was_typed(
    run: Run, bucket: Bucket, words: Words, command: str
) -> None:
    status, _, err = run(*words(READING[command], f"{bucket.url}/none"))
    assert status == 2
    assert "error: s3://a-bucket/none: no store.json" in err
    assert "Traceback" not in err


def test_second_texts_are_read_by_a_url_too(
    run: Run, bucket: Bucket, here: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"hidden": ["last,embedding"], "top_k": 8}
    capture(str(here / "teacher"), str(here / "data.jsonl"), out=tmp_path / "plain", **how)
    flags = "--loss cot2align --cot_store s3://a-bucket/none --json " + FLAGS
    places = ["--store", str(tmp_path / "plain"), "--output_dir", str(tmp_path / "new")]
    student = ["--model_name_or_path", str(here / "student")]
    status, _, err = run("train", *student, *places, *flags.split())
    assert status == 2
    assert "error: s3://a-bucket/none: no store.json" in err
    del bucket


def test_a_page_is_not_written_to_a_bucket(run: Run, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"name": "one", "bits_per_byte": 1.0}))
    status, _, err = run("compare", str(tmp_path), "-o", "s3://bucket/r.html")
    assert status == 2
    assert "error: s3://bucket/r.html: is in a bucket, but a page must be on this machine" in err


def test_every_command_is_tried_or_names_no_store() -> None:
    group = typer.main.get_command(app)
    assert READING.keys() | NAME_NO_STORE == set(group.commands)  # type: ignore[attr-defined]
