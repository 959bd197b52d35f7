"""Stores made to harm whoever reads them. Each is refused with one error, in little memory.

An attack is a function that spoils a good store; its docstring says what it tries. Digests and
checksums are made right again wherever an attacker could (see hostile.py).
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError
from logitstore.format.rows_parquet import LinesReader, encode_lines
from logitstore.records import Segment, SequenceText
from logitstore.store import open_store
from logitstore.testing import stores
from tests.kit.attacks_on_files import ATTACKS
from tests.kit.attacks_on_shards import edit_index
from tests.kit.hostile import outcomes
from tests.kit.made_stores import put

LIMIT_BYTES = 100 * 1024 * 1024


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every attack once, in one victim."""
    folder = tmp_path_factory.mktemp("attacks")
    whole = folder / "whole"
    put(whole, stores.spec(chunks=(4, 32768)))
    for name, spoil in ATTACKS.items():
        spoil(Path(shutil.copytree(whole, folder / name)))
    try:
        return outcomes([whole, whole, *(folder / name for name in ATTACKS)])
    finally:
        shutil.rmtree(folder)


def test_the_victim_reads_an_honest_store(results: dict[str, dict[str, Any]]) -> None:
    assert results["whole"]["read"]["error"] is None, results["whole"]
    assert results["whole"]["verify"]["error"] is None


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_is_refused_in_little_memory(
    results: dict[str, dict[str, Any]], name: str
) -> None:
    read, verify = results[name]["read"], results[name]["verify"]
    assert "LogitStoreError" in read["kinds"], f"reading: {read}"
    assert verify["error"] in ("ValueError", "CorruptStoreError", "NotAStoreError"), verify
    for use in (read, verify):
        assert use["peak_bytes"] < LIMIT_BYTES, f"{use['peak_bytes']:,} bytes over idle: {use}"
    assert "Traceback" not in read["says"]


def test_no_flipped_bit_of_the_text_ends_the_process() -> None:
    """Found by fuzzing: pyarrow 26 aborts when it is asked for a column whose level histogram is
    not of the right length, so its column metadata is never asked for."""
    lines = [SequenceText(i, 0, "ok", (Segment("some text", True),)) for i in range(4)]
    data = bytes(memoryview(encode_lines(lines)))
    child = os.fork()
    if child == 0:
        rng = np.random.default_rng(0)
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 1 << int(rng.integers(8))
            with suppress(ValueError):
                reader = LinesReader(memoryview(changed), 4)
                read = [reader[i] for i in range(4)]
                if read != lines:
                    os._exit(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_chunks_whose_sizes_wrap_around_are_refused_when_the_array_is_opened(
    tmp_path: Path,
) -> None:
    put(tmp_path / "s", stores.spec(chunks=(4, 512)))
    edit_index(tmp_path / "s", lambda p: p[0].__setitem__(1, 2**64 - 40))
    with pytest.raises(CorruptStoreError, match="token_ids: a chunk reaches outside the member"):
        open_store(tmp_path / "s").text(3)


def test_a_device_in_the_place_of_a_file_is_not_read(tmp_path: Path) -> None:
    """A tokenizer that is a link to /dev/zero would be hashed for ever."""
    put(tmp_path / "s")
    (tmp_path / "s" / "tokenizer" / "tokenizer.json").unlink()
    (tmp_path / "s" / "tokenizer" / "tokenizer.json").symlink_to("/dev/null")
    (damage,) = verify_store(tmp_path / "s").damaged
    assert damage.file == "tokenizer/tokenizer.json"
    assert "not an ordinary file" in damage.reason


@pytest.mark.parametrize(
    "name",
    [
        "array_of_gigabytes_of_zeros",
        "rows_that_decompress_without_end",
        "rows_that_repeat_one_long_text",
        "index_that_decompresses_without_end",
    ],
)
def test_a_bomb_is_refused_for_being_one(results: dict[str, dict[str, Any]], name: str) -> None:
    """Before it is decoded, not for what is found in it afterwards."""
    assert "declare that they become" in results[name]["read"]["says"]
