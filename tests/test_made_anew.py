"""What is made anew is the same in every process: sets have another order in each.

Python's do, by the seed of its hashes, and so do the maps of the tokenizers' library, by chance and
by the number of its threads. All is made in one other process, which loads the libraries again: of
the dozens of pieces that any of this orders, a second order leaves none where it was.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from logitstore.testing import tiny
from tests.kit import made_anew
from tests.kit.paths import ROOT

SEED = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"


def made_there(*what: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.made_anew", *what],
        env=os.environ | {"PYTHONHASHSEED": SEED, "RAYON_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.byte_bpe()
    folder = tmp_path_factory.mktemp("student") / "student"
    return tiny.save(folder, tiny.llama(len(tokenizer), seed=1), tokenizer)


@pytest.fixture(scope="module")
def there(student: Path) -> dict[str, Any]:
    """What another process has made."""
    return made_there("tokenizers", "pieces", f"adapters={student},1")


def test_the_tokenizers_of_the_tests_are(there: dict[str, Any]) -> None:
    assert there["tokenizers"] == made_anew.tokenizers()


def test_the_pieces_of_the_demos_tokenizer_are(there: dict[str, Any]) -> None:
    here = made_anew.pieces()
    assert len(here) == 300
    assert there["pieces"] == here


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_adapters_of_one_seed_are_whatever_was_drawn_before(
    there: dict[str, Any], student: Path
) -> None:
    assert there["adapters"] == made_anew.adapters(str(student), "2")
