"""Real tokenizers, each loaded once for all files here: reading one takes up to half a minute.

`python -m tools.real_parts` fetches them.
"""

from functools import cache

import pytest
from transformers import PreTrainedTokenizerBase

from logitstore.models.loading import load_tokenizer
from tests.kit.agreement import Pair
from tests.kit.paths import ROOT
from tools.real_parts import TOKENIZERS

FOLDER = ROOT / "build" / "real"
#: What repeats another at a greater size, as gpt-oss does Llama 3: white space, digits, bytes.
REPEATED = {"gptoss"}


def file_of(name: str) -> str:
    """Name the file that there is if this tokenizer has been fetched."""
    return str(FOLDER / "tokenizers" / name / "tokenizer.json")


@cache
def loaded(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; nobody may change it."""
    return load_tokenizer(FOLDER / "tokenizers" / name, local_files_only=True)


@cache
def pair(name: str) -> Pair:
    """Read a tokenizer as the library does and as the definition does."""
    return Pair.of(loaded(name))


def marked(*names: str) -> object:
    """Make a parameter of one or several tokenizers; slow where one of them is a repetition."""
    slow = [pytest.mark.slow] if REPEATED & {*names} else []
    return pytest.param(*names, marks=slow)


def forget() -> None:
    """Let go of all of them: they are gigabytes."""
    for each in (loaded, pair):
        each.cache_clear()


ALL = [marked(name) for name in TOKENIZERS]
