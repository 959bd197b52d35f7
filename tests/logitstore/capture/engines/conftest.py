"""A teacher that engines other than transformers have too, and rows for it."""

import pytest

from tests.kit import dumps
from tests.kit.dumper import teacher
from tests.kit.dumps import ENGLISH

__all__ = ["teacher"]  # a fixture


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of texts."""
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    return str(dumps.write_jsonl(path, [{"text": text} for text in ENGLISH]))
