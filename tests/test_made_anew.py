"""What is made anew is the same in every process: sets have another order in each.

Python's do, by the seed of its hashes, and so do the maps of the tokenizers' library, by chance and
by the number of its threads. All is made in as few processes as there are orders to try: each loads
the libraries again.
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

SEEDS = [seed for seed in ("1", "2", "3") if seed != os.environ.get("PYTHONHASHSEED")][:2]


def made_there(seed: str, *what: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.made_anew", *what],
        env=os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed},
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
def there(student: Path) -> list[dict[str, Any]]:
    """What two other processes have made; the adapters, one of them."""
    first, second = SEEDS
    return [
        made_there(first, "tokenizers"),
        made_there(second, "tokenizers", "pieces", f"adapters={student},1"),
    ]


def test_the_tokenizers_of_the_tests_are(there: list[dict[str, Any]]) -> None:
    assert [each["tokenizers"] for each in there] == [made_anew.tokenizers()] * 2


def test_the_pieces_of_the_demos_tokenizer_are(there: list[dict[str, Any]]) -> None:
    here = made_anew.pieces()
    assert len(here) == 300
    assert there[1]["pieces"] == here


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_adapters_of_one_seed_are_whatever_was_drawn_before(
    there: list[dict[str, Any]], student: Path
) -> None:
    assert there[1]["adapters"] == made_anew.adapters(str(student), "2")
