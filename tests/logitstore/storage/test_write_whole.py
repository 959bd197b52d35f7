"""Files that are derived and may be written again: whole or not at all, by however many at once."""

import ast
import errno
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distill.report.model_card import write_card
from distill.report.results import write_results
from logitstore.console.html_document import write_document
from logitstore.storage import commit
from logitstore.storage.commit import OsFs
from logitstore.storage.files import Buffer
from tests.kit.paths import ROOT


def write_bytes(folder: Path, text: str) -> None:
    commit.write_whole(folder / "derived", text.encode())


def write_run(folder: Path, text: str) -> None:
    write_results(folder, {"name": text})


def write_student_card(folder: Path, text: str) -> None:
    write_card(folder, {"name": text, "loss": "alm"})


def write_page(folder: Path, text: str) -> None:
    write_document(folder / "page.html", text)


WRITERS = (write_bytes, write_run, write_student_card, write_page)


@pytest.mark.parametrize("write", WRITERS)
def test_of_two_writers_at_once_one_wins_whole_and_neither_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, str], None]
) -> None:
    """Both have written all of their bytes before either gives them their name."""
    names = ("one", "another one")
    wanted = {written_alone(tmp_path / name, write, name) for name in names}
    both, replace = threading.Barrier(2, timeout=20), OsFs.replace

    def replace_together(fs: OsFs, source: Path, target: Path) -> None:
        both.wait()
        replace(fs, source, target)

    monkeypatch.setattr(OsFs, "replace", replace_together)
    (tmp_path / "both").mkdir()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write, tmp_path / "both", name) for name in names]:
            done.result()
    (path,) = (tmp_path / "both").iterdir()
    assert path.read_bytes() in wanted


def written_alone(folder: Path, write: Callable[[Path, str], None], text: str) -> bytes:
    folder.mkdir()
    write(folder, text)
    (path,) = folder.iterdir()
    return path.read_bytes()


@pytest.mark.parametrize("step", ["write_durably", "replace"])
@pytest.mark.parametrize("write", WRITERS)
def test_a_writer_that_is_refused_leaves_what_was_there_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, str], None],
    step: str,
) -> None:
    write(tmp_path, "before")
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(OsFs, step, refuse)
    with pytest.raises(Exception, match="No space left"):
        write(tmp_path, "after")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_the_bytes_are_durable_before_they_have_the_name_and_the_name_at_the_end(
    tmp_path: Path,
) -> None:
    steps = []

    class Noting(OsFs):
        def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
            steps.append("write and sync")
            super().write_durably(path, pieces)

        def replace(self, source: Path, target: Path) -> None:
            steps.append("name")
            super().replace(source, target)

        def sync_folder(self, path: Path) -> None:
            steps.append("sync the folder")
            super().sync_folder(path)

    commit.write_whole(tmp_path / "a", b"data", Noting())
    assert steps == ["write and sync", "name", "sync the folder"]


def test_a_folder_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    class Full(OsFs):
        def replace(self, source: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        commit.replace_folder(tmp_path / "folder", {"a": b"1"}, Full())
    assert list(tmp_path.iterdir()) == []


def test_a_twins_folder_of_the_same_files_is_kept(tmp_path: Path) -> None:
    class Late(OsFs):
        def replace(self, source: Path, target: Path) -> None:
            target.mkdir()
            (target / "a").write_bytes(b"1")
            super().replace(source, target)

    commit.replace_folder(tmp_path / "folder", {"a": b"1"}, Late())
    assert (tmp_path / "folder" / "a").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_nobody_else_gives_a_file_its_name_by_hand() -> None:
    paths = [p for folder in ("logitstore", "distill") for p in (ROOT / folder).rglob("*.py")]
    assert paths
    assert [str(p.relative_to(ROOT)) for p in paths if names_by_hand(p)] == []


def names_by_hand(path: Path) -> bool:
    """Whether a file renames, or spells the ending of a file that is not whole yet."""
    text = path.read_text(encoding="utf-8")
    if not any(word in text for word in ("replace", "rename", ".tmp")):
        return False  # most have nothing to parse
    return any(
        (isinstance(node, ast.Attribute) and is_of_os(node))
        or (isinstance(node, ast.Constant) and str(node.value).endswith(".tmp"))
        for node in ast.walk(ast.parse(text))
    )


def is_of_os(node: ast.Attribute) -> bool:
    is_named = node.attr in ("replace", "rename")
    return is_named and isinstance(node.value, ast.Name) and node.value.id == "os"


def test_a_name_that_is_given_by_hand_would_be_seen(tmp_path: Path) -> None:
    for code, is_seen in (
        ("os.replace(a, b)", True),
        ("move = os.rename", True),
        ("name + '.tmp'", True),
        ("text.replace(a, b)", False),
        ("# os.replace and .tmp", False),
    ):
        (tmp_path / "code.py").write_text(code)
        assert names_by_hand(tmp_path / "code.py") == is_seen, code


def test_many_that_replace_a_damaged_folder_at_once_all_end_with_a_whole_one(
    tmp_path: Path,
) -> None:
    files = {f"{i:02d}": bytes([i]) * 100 for i in range(20)}
    for _ in range(5):
        for name in list(files)[:15]:
            (tmp_path / "folder").mkdir(exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(b"damaged")
        with ThreadPoolExecutor(8) as pool:
            for done in [
                pool.submit(commit.replace_folder, tmp_path / "folder", files) for _ in range(8)
            ]:
                done.result()
        there = {p.name: p.read_bytes() for p in (tmp_path / "folder").iterdir()}
        assert there == files
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_whole_folder_is_never_away_while_another_writes_the_same(tmp_path: Path) -> None:
    """Ranks of a new node fetch one tokenizer: whoever was slower removed what the other read."""
    folder, files = tmp_path / "tokenizer", {"tokenizer.json": b"{}", "other.json": b"[]"}
    commit.replace_folder(folder, files)
    first = folder.stat().st_ino
    commit.replace_folder(folder, files)  # by one that had begun to fetch it, too
    assert folder.stat().st_ino == first, "the first one's folder was replaced"
    assert os.listdir(tmp_path) == ["tokenizer"]


def test_a_folder_with_other_files_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    commit.replace_folder(folder, {"a": b"old", "b": b""})
    commit.replace_folder(folder, {"a": b"new"})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"a": b"new"}
    assert os.listdir(tmp_path) == ["tokenizer"]


def test_a_whole_folder_that_came_while_a_damaged_one_was_moved_away_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files = tmp_path / "tokenizer", {"a": b"whole"}
    commit.replace_folder(folder, {"a": b"damaged"})
    real = commit._remove_other

    def late(folder: Path, files: dict[str, bytes]) -> None:
        monkeypatch.setattr(commit, "_remove_other", real)
        commit.replace_folder(folder, files)
        late.inode = folder.stat().st_ino  # type: ignore[attr-defined]
        real(folder, files)

    monkeypatch.setattr(commit, "_remove_other", late)
    commit.replace_folder(folder, files)
    assert folder.stat().st_ino == late.inode  # type: ignore[attr-defined]
