"""What tests of boundaries only read: a student of each kind, and one store."""

from pathlib import Path

import pytest

from logitstore.store import LogitStore
from logitstore.testing import tiny
from tests.kit.boundaries import run
from tests.kit.rows import texts_file


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student of each kind, and rows of text."""
    here = tmp_path_factory.mktemp("boundaries")
    for name, made in (
        ("unigram", tiny.unigram()),
        ("bpe", tiny.byte_bpe(300)),
        ("sp", tiny.sp_bpe()),
        ("wordpiece", tiny.wordpiece()),
    ):
        made.save_pretrained(here / name)
    texts_file(here / "rows.jsonl", [*tiny.corpus(), ""])
    return here


@pytest.fixture(scope="session")
def store(teacher: Path, place: Path) -> LogitStore:
    return run(teacher, place, place / "store")
