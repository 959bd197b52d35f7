"""Fixtures of pages: a folder with what a reader is said to have, and our commands run in it."""

import json
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import distill.cli
import logitstore.cli
from logitstore.testing import tiny
from tests.kit.commands import runner

Call = Callable[..., str]


@pytest.fixture
def call(
    page_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Run a command in this process, in the folder; what it prints."""
    mains = {"logitstore": logitstore.cli.main, "distill": distill.cli.main}
    monkeypatch.chdir(page_folder)

    def calls(program: str, *words: str) -> str:
        status, out, err = runner(program, mains[program], monkeypatch, capsys)(*words)
        assert status == 0, f"{program} {shlex.join(words)}\n{out}\n{err}"
        return out

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield calls


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a page says a user has: `teacher`, `student`, and three datasets."""
    folder = tmp_path_factory.mktemp("page")
    for name, tokenizer in (("teacher", tiny.byte_bpe()), ("student", tiny.unigram())):
        tiny.save(folder / name, tiny.llama(len(tokenizer)), tokenizer)
    texts = tiny.corpus()
    for name, rows in (("train", texts[:-8]), ("heldout", texts[-8:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts[:5])
    (folder / "prompts.jsonl").write_text(lines)
    return folder
