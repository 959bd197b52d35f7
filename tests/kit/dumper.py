"""A teacher that other tools have asked, made once for all tests that read it."""

import pytest

from tests.kit import dumps
from tests.kit.dumps import Dumper


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Dumper:
    """It is only read: one with other settings is a copy (`dataclasses.replace`)."""
    return dumps.dumper(tmp_path_factory.mktemp("dumps") / "teacher")
