"""Real tokenizers live as long as the tests of this folder run, all in one process."""

from collections.abc import Iterator

import pytest

from tests.real import vocabularies


@pytest.fixture(scope="package", autouse=True)
def _let_go() -> Iterator[None]:
    yield
    vocabularies.forget()
