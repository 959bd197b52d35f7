"""A teacher on disk, saved once for all tests that only read it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Llama with a byte-level BPE tokenizer of 400 tokens that writes a BOS."""
    from logitstore.testing import tiny

    folder = tmp_path_factory.mktemp("saved") / "teacher"
    return tiny.save(folder, tiny.llama(400), tiny.byte_bpe(400, bos=True))
