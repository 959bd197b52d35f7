"""The checkpoint to go on from is the newest that was saved whole, not the newest there is."""

import json
from pathlib import Path

import pytest

from distill.training.checkpoints import newest_whole
from distill.training.preflight import ORIGIN_FILE

ORIGIN = {"store_digest": "d", "sequences": 1, "settings": {}}


def saved(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}")
    (path / ORIGIN_FILE).write_text(json.dumps(ORIGIN))
    return path


def test_of_whole_checkpoints_the_newest(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        saved(tmp_path, step)
    (tmp_path / "checkpoint-of-mine").mkdir()
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-10", [])


@pytest.mark.parametrize("gone", ["trainer_state.json", ORIGIN_FILE])
def test_half_a_checkpoint_is_passed_over_and_named(tmp_path: Path, gone: str) -> None:
    first, second = saved(tmp_path, 2), saved(tmp_path, 4)
    (second / gone).unlink()
    assert newest_whole(tmp_path) == (first, [second])


def test_a_checkpoint_with_a_cut_file_is_passed_over(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 2), saved(tmp_path, 4)
    (second / "optimizer.pt").write_bytes(b"PK")
    assert newest_whole(tmp_path) == (first, [second])


def test_where_none_is_whole_there_is_none(tmp_path: Path) -> None:
    (saved(tmp_path, 4) / ORIGIN_FILE).unlink()
    assert newest_whole(tmp_path) == (None, [tmp_path / "checkpoint-4"])
    assert newest_whole(tmp_path / "none") == (None, [])
