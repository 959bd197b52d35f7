"""The rows that are read are those that the files hold now, whatever time the files claim."""

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitstore.errors import InputError, MismatchError
from logitstore.rows import source_files, sources
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.source_files import SourceFiles
from logitstore.rows.watch import Watch
from logitstore.storage.files import file_sign
from tests.kit.rows import texts_file

FIXED_S = 1.7e9
OLD, NEW = "the teacher reads the old page", "my sister writes on another page"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def texts_of(rows: Rows) -> list[str]:
    return [rows.segments(i)[0].text for i in range(len(rows))]


# Each writes one text to a file of its kind, in a folder, and returns the file and the dataset.


def as_jsonl(folder: Path, text: str) -> tuple[Path, Path]:
    path = texts_file(folder / "a.jsonl", [text])
    return path, path


def as_txt(folder: Path, text: str) -> tuple[Path, Path]:
    path = folder / "a.txt"
    path.write_text(text, encoding="utf-8")
    return path, path


def as_parquet(folder: Path, text: str) -> tuple[Path, Path]:
    path = folder / "a.parquet"
    pq.write_table(pa.table({"text": [text]}), path)
    return path, path


def in_folder(folder: Path, text: str) -> tuple[Path, Path]:
    return as_jsonl(folder, text)[0], folder


def as_archive(folder: Path, text: str) -> tuple[Path, Path]:
    """Of an archive `datasets` asks for no time: it is unpacked once for a path."""
    plain = as_jsonl(folder, text)[0]
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()
    return path, folder


def named_by_a_card(folder: Path, text: str) -> tuple[Path, Path]:
    """The card of a folder may name files outside of it."""
    inside = folder / "inside"
    inside.mkdir(exist_ok=True)
    card = "---\nconfigs:\n- config_name: default\n  data_files: ../a.jsonl\n---\n"
    (inside / "README.md").write_text(card, encoding="utf-8")
    return as_jsonl(folder, text)[0], inside


Writer = Callable[[Path, str], tuple[Path, Path]]
KINDS = [as_jsonl, as_txt, as_parquet, in_folder, as_archive, named_by_a_card]


@pytest.mark.parametrize("write", KINDS)
def test_a_file_that_keeps_its_time_is_read_as_it_is_now(write: Writer, tmp_path: Path) -> None:
    for text in (OLD, NEW, OLD):
        file, dataset = write(tmp_path, text)
        os.utime(file, (FIXED_S, FIXED_S))
        assert texts_of(load_rows(dataset)) == [text]


def test_a_file_that_replaces_another_of_its_size_and_time_is_read(tmp_path: Path) -> None:
    """As `mv` and `rsync` do it: no byte of the old file is written to."""
    file, dataset = as_txt(tmp_path, OLD)
    os.utime(file, (FIXED_S, FIXED_S))
    assert texts_of(load_rows(dataset)) == [OLD]
    (tmp_path / "other").mkdir()
    as_txt(tmp_path / "other", NEW[: len(OLD)])[0].rename(file)
    os.utime(file, (FIXED_S, FIXED_S))
    assert texts_of(load_rows(dataset)) == [NEW[: len(OLD)]]


def test_two_writes_in_one_tick_of_the_clock_are_told_apart_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = as_txt(tmp_path, OLD)
    same = file_sign(file)
    monkeypatch.setattr(source_files, "file_sign", lambda _: same)
    before = SourceFiles([file], "a.txt").cache
    file.write_text(OLD.replace("old", "new"), encoding="utf-8")
    assert SourceFiles([file], "a.txt").cache != before


def test_a_file_that_nobody_wrote_to_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dataset = as_jsonl(tmp_path, OLD)
    assert texts_of(load_rows(dataset)) == [OLD]
    monkeypatch.setattr(datasets.DatasetBuilder, "_download_and_prepare", None)
    assert texts_of(load_rows(dataset)) == [OLD]


def test_a_file_that_is_written_to_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dataset = as_jsonl(tmp_path, OLD)
    reads = sources.read_columns

    def writes_then_reads(*arguments: Any) -> Any:
        as_jsonl(tmp_path, NEW)
        return reads(*arguments)

    monkeypatch.setattr(sources, "read_columns", writes_then_reads)
    with pytest.raises(InputError, match=r"a\.jsonl was written to while it was read"):
        load_rows(dataset)


# Rows that are mapped from a file


def on_disk(folder: Path) -> tuple[Rows, Path]:
    datasets.Dataset.from_dict({"text": [OLD, OLD]}).save_to_disk(str(folder))
    return load_rows(folder), next(folder.glob("*.arrow"))


def edit(file: Path, old: str = "teacher", new: str = "TEACHER") -> None:
    """Change bytes where they are, and set the time back."""
    about, data = file.stat(), file.read_bytes()
    assert old.encode() in data
    with file.open("r+b") as f:
        f.write(data.replace(old.encode(), new.encode()))
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_rows_that_change_in_place_are_not_those_of_the_digest(tmp_path: Path) -> None:
    rows, file = on_disk(tmp_path / "d")
    watch = Watch(rows)
    assert watch.digest == rows.digest()
    watch.check()
    edit(file)
    with pytest.raises(MismatchError, match="has changed while it was read") as caught:
        watch.check()
    assert caught.value.kind == "dataset-changed"
    edit(file, "TEACHER", "teacher")
    watch.check()


def test_rows_that_change_before_their_digest_is_taken_are_those_of_the_digest(
    tmp_path: Path,
) -> None:
    rows, file = on_disk(tmp_path / "d")
    watch = Watch(rows)
    edit(file)
    assert watch.digest == load_rows(tmp_path / "d").digest()
    watch.check()


def test_a_file_that_is_touched_or_replaced_changes_no_row(tmp_path: Path) -> None:
    """What is mapped is the file, whatever has its name by now."""
    rows, file = on_disk(tmp_path / "d")
    watch = Watch(rows)
    _ = watch.digest
    os.utime(file)
    watch.check()
    file.unlink()
    watch.check()
    file.write_bytes(b"something else")
    watch.check()


def test_rows_in_memory_have_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(load_rows(datasets.Dataset.from_dict({"text": [OLD]})))
    _ = watch.digest
    monkeypatch.setattr(Rows, "digest", None)
    watch.check()
