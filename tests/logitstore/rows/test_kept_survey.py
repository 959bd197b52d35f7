"""What is known of a large dataset is kept, and not believed once one of its files has changed."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from logitstore.errors import MismatchError
from logitstore.rows import kept_survey
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.survey import survey
from logitstore.rows.watch import Watch

TEXTS = [f"The teacher reads page {i}." for i in range(300)]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """How long it waited before it read; every dataset is large here, and nobody waits."""
    waited: list[float] = []
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_survey, "WORTH_KEEPING_BYTES", 1)
    monkeypatch.setattr(kept_survey.time, "sleep", waited.append)
    return waited


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """The rows of which all were read, each time."""
    seen: list[Rows] = []

    class Counted(kept_survey.Surveying):
        def __init__(self, rows: Any) -> None:
            seen.append(rows)
            super().__init__(rows)

    monkeypatch.setattr(kept_survey, "Surveying", Counted)
    return seen


def edit_in_place(folder: Path, *, keep_time: bool = False) -> None:
    for file in folder.glob("*.arrow"):
        before = file.stat()
        data = file.read_bytes().replace(b"teacher", b"TEACHER")
        with file.open("r+b") as f:
            f.write(data)
        if keep_time:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_next_process_reads_no_row_and_knows_the_same(
    waits: list[float], saved: Path, reads: list[Rows]
) -> None:
    first, second = load_rows(str(saved)).survey, load_rows(str(saved)).survey
    assert len(reads) == 1
    exact = survey(load_rows(str(saved)))
    for found in (first, second):
        assert (found.digest, found.obeys) == (exact.digest, exact.obeys)
        assert found.text_bytes.tolist() == exact.text_bytes.tolist()


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_file_that_was_written_to_is_read_again(
    waits: list[float], saved: Path, reads: list[Rows], keep_time: bool
) -> None:
    old = load_rows(str(saved)).digest()
    edit_in_place(saved, keep_time=keep_time)
    rows = load_rows(str(saved))
    assert rows.digest() == survey(rows).digest != old
    assert len(reads) == 2


def test_other_rows_or_columns_of_the_same_files_are_read(
    waits: list[float], saved: Path, reads: list[Rows]
) -> None:
    whole = datasets.load_from_disk(str(saved))
    some = whole.select(range(100))
    digests = {load_rows(each).digest() for each in (whole, some, whole.select(range(100, 200)))}
    assert len(digests) == len(reads) == 3


@pytest.mark.parametrize(
    "other",
    [
        lambda whole: whole.shuffle(seed=1, keep_in_memory=True),  # its order is in memory
        lambda whole: datasets.concatenate_datasets(
            [whole, datasets.Dataset.from_dict({"text": ["x"]})]
        ),
    ],
)
def test_nothing_is_kept_of_rows_that_are_in_memory(
    waits: list[float], saved: Path, reads: list[Rows], other: Callable[[Any], Any]
) -> None:
    rows = other(datasets.load_from_disk(str(saved), keep_in_memory=False))
    digests = {load_rows(rows).digest() for _ in range(2)}
    assert digests == {survey(load_rows(rows)).digest}
    assert reads == [], "it went past what is kept"


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    waits: list[float], saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = kept_survey.Surveying.sizes

    def edited(self: Any) -> Any:
        yield from sizes(self)
        edit_in_place(saved)

    monkeypatch.setattr(kept_survey.Surveying, "sizes", edited)
    rows = load_rows(str(saved))
    watch = Watch(rows)
    _ = watch.digest
    kept = [file for file in (tmp_path / "cache" / "surveys").iterdir() if file.suffix != ".i64"]
    assert kept == [], "what was read is of both"
    monkeypatch.setattr(kept_survey.Surveying, "sizes", sizes)
    with pytest.raises(MismatchError, match="has changed while it was read"):
        watch.check()
    again = load_rows(str(saved))
    assert again.digest() == survey(again).digest != watch.digest


def test_a_file_of_today_is_read_only_when_the_clock_has_ticked(
    waits: list[float], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second write within a tick, which no time tells, can only come before it is read."""
    load_rows(str(saved)).digest()
    assert waits == [3.0]
    in_two_days = time.time_ns() + 2 * 24 * 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: in_two_days)
    load_rows(datasets.load_from_disk(str(saved)).select(range(9))).digest()
    assert waits == [3.0], "a file of last week needs no wait"


def test_a_damaged_copy_is_made_again(waits: list[float], saved: Path, tmp_path: Path) -> None:
    exact = load_rows(str(saved)).survey
    for kept in (tmp_path / "cache" / "surveys").iterdir():
        data = bytearray(kept.read_bytes())
        data[len(data) // 2] ^= 1
        kept.write_bytes(data)
        found = load_rows(str(saved)).survey
        assert found.digest == exact.digest
        assert found.text_bytes.sum() == sum(map(len, TEXTS))
