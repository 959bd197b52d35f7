"""A folder and a bucket are one thing to the rest of the program: the same laws hold of both."""

import ast
import errno
import hashlib
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from logitstore.errors import InputError, MismatchError, StorageError
from logitstore.storage.commit import OsFs
from logitstore.storage.files import Buffer
from logitstore.storage.folder import LocalPath
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import (
    StorePath,
    local_path,
    names_in_or_none,
    remove_temporaries,
    store_path,
    to_write,
)
from logitstore.testing.buckets import Bucket
from tests.kit.paths import ROOT


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePath:
    """An empty one."""
    if request.param == "folder":
        (tmp_path / "place").mkdir()
        return to_write(tmp_path / "place")
    bucket: Bucket = request.getfixturevalue("bucket")
    return to_write(f"{bucket.url}/place")


def test_a_name_is_given_once_and_keeps_its_bytes(place: StorePath) -> None:
    file = place / "a"
    assert not file.exists()
    assert file.create([b"first ", memoryview(b"writer")])
    assert not file.create([b"second"])
    assert file.exists()
    assert file.is_file()
    assert not file.is_symlink()
    assert file.read_bytes() == b"first writer"
    assert place.names() == ["a"]


def test_overwriting_replaces_and_changes_the_sign(place: StorePath) -> None:
    file = place / "a"
    file.overwrite(b"one")
    before = place.signs()
    file.overwrite(b"another")
    assert file.read_bytes() == b"another"
    assert place.signs().keys() == before.keys() == {"a"}
    assert place.signs() != before


def test_what_is_refreshed_changes_its_sign_and_begins_with_the_same_bytes(
    place: StorePath,
) -> None:
    file = place / "a"
    file.write_bytes(b"content")
    for _ in range(3):
        before = place.signs()
        time.sleep(0.02)
        file.refresh(b"content")
        assert place.signs() != before
        assert file.read_bytes().startswith(b"content")
    assert place.names() == ["a"]


def test_a_file_that_was_removed_is_not_refreshed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        (store_path(tmp_path) / "a").refresh(b"content")
    assert list(tmp_path.iterdir()) == []


def test_what_is_deleted_is_gone_and_may_be_gone_before(place: StorePath) -> None:
    file = place / "a"
    file.overwrite(b"data")
    file.delete()
    file.delete()
    assert names_in_or_none(place) == []


def test_parts_of_a_file_are_those_of_the_whole(place: StorePath) -> None:
    data = bytes(range(256)) * 12_000
    file = place / "a"
    file.create([data])
    assert file.size_bytes() == len(data)
    assert b"".join(file.pieces()) == data
    assert file.sha256() == hashlib.sha256(data).hexdigest()
    assert file.read_limited(len(data)) == data
    assert file.read_range(300, 700) == data[300:700]
    assert file.read_range(len(data) - 3, len(data) + 3) == data[-3:]
    assert file.read_range(len(data) + 1, len(data) + 3) == b""
    with pytest.raises(ValueError, match=f"more than {len(data) - 1:,} bytes"):
        file.read_limited(len(data) - 1)


def test_what_is_not_there_is_one_error_and_no_guess(place: StorePath) -> None:
    file = place / "a"
    assert not file.is_file()
    for read in (file.size_bytes, file.read_bytes, file.sha256, lambda: file.read_limited(9)):
        with pytest.raises(FileNotFoundError):
            read()
    with pytest.raises(FileNotFoundError):
        file.read_range(0, 3)
    assert file.signs() == {}


def test_a_folder_of_files_is_written_whole_and_replaces_another(place: StorePath) -> None:
    folder = place / "tokenizer"
    folder.write_folder({"a": b"1", "b": b"2"})
    folder.write_folder({"a": b"3", "b": b"2"})
    assert {name: (folder / name).read_bytes() for name in folder.names()} == {
        "a": b"3",
        "b": b"2",
    }
    assert place.names() == ["tokenizer"]


def test_a_file_moves_to_a_place_that_is_made_for_it(place: StorePath) -> None:
    (place / "a").create([b"data"])
    (place / "a").move_to(place / "aside" / "1" / "a")
    assert not (place / "a").exists()
    assert (place / "aside" / "1" / "a").read_bytes() == b"data"


def test_only_what_crashes_leave_is_swept(place: StorePath) -> None:
    place.make_folder()
    for name in ("a", ".tmp-b", ".tmp-c"):
        (place / name).create([b"data"])
    remove_temporaries(place)
    assert place.names() == ["a"]


def test_a_place_knows_its_name_and_survives_a_pickle(place: StorePath) -> None:
    file = place / "shards" / "a"
    assert (file.name, file.parent.name, file.parent.parent) == ("a", "shards", place)
    assert file.with_name("b") == file.parent / "b"
    assert str(file) == f"{place}/shards/a"
    again = pickle.loads(pickle.dumps(file))
    assert (again, type(again)) == (file, type(file))
    assert store_path(file) == store_path(str(file)) == file
    assert file.resolve() == file.resolve().resolve()


def test_a_free_place_may_be_written(place: StorePath) -> None:
    place.check_writable()
    place.check_access()
    (place / "a").create([b"data"])
    (place / "a").check_conditional(b"data")
    assert (place / "a").read_bytes() == b"data"


def test_a_local_place_is_a_path_wherever_one_is_wanted(tmp_path: Path) -> None:
    place = store_path(tmp_path)
    assert isinstance(place, Path)
    assert isinstance(place / "a", LocalPath)
    assert (place, hash(place), os.fspath(place)) == (tmp_path, hash(tmp_path), str(tmp_path))
    assert not place.is_remote
    assert store_path("s3://bucket/name").is_remote


def test_a_place_below_a_file_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    for name in ("file", "file/store", "file/a/store"):
        with pytest.raises(MismatchError, match=f"^{tmp_path}/file: is a file, not a folder"):
            store_path(tmp_path / name).check_access()


def test_what_the_caller_writes_with_is_what_writes(tmp_path: Path) -> None:
    class Full(OsFs):
        def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
            raise OSError("no")

    with pytest.raises(StorageError, match="the file system refused"):
        store_path(tmp_path / "a").create([b"data"], Full())
    with pytest.raises(StorageError, match="the file system refused"):
        store_path(tmp_path / "a").overwrite(b"data", Full())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["s3://bucket/name", "hf://datasets/who/what", "memory://a/b"])
def test_a_url_that_pathlib_has_shortened_is_named_as_it_was(url: str) -> None:
    with pytest.raises(InputError, match=f"Give the text {url} instead"):
        store_path(Path(url))


def test_what_must_be_a_file_is_no_object(tmp_path: Path) -> None:
    assert local_path(str(tmp_path), "a page", "-o") == tmp_path
    wrong = "s3://bucket/r.html: is in a bucket, but a page must be on this machine"
    with pytest.raises(InputError, match=wrong):
        local_path("s3://bucket/r.html", "a page", "-o")


#: Where it matters, which of the two it is, and how often; why, is said there.
ASKED = {
    "logitstore/storage/paths.py": 2,
    "logitstore/reading/open_shards.py": 1,
    "logitstore/reading/bucket.py": 1,
    "logitstore/reading/lm_head.py": 1,
    "logitstore/checking/shard_check.py": 1,
    "logitstore/moving/zarr_target.py": 1,
    "logitstore/capture/sharing/sharing.py": 1,
    "logitstore/writing/journal.py": 1,
}
_KINDS = {"Path", "PosixPath", LocalPath.__name__, RemotePath.__name__}


def test_hardly_anybody_asks_whether_a_place_is_a_folder_or_a_bucket() -> None:
    asked: Counter[str] = Counter()
    for path in [p for folder in ("logitstore", "distill") for p in (ROOT / folder).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if "isinstance" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_call and node.func.id == "isinstance":
                kind = node.args[1]
                asked[str(path.relative_to(ROOT))] += (
                    isinstance(kind, ast.Name) and kind.id in _KINDS
                )
    assert +asked == ASKED


def test_a_leading_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shells leave it in `--out=~/x`, and files of settings always: a folder `~` was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_path("~/x") == LocalPath(tmp_path / "x")
    assert store_path("./~/x") == LocalPath("./~/x")
    assert store_path("~nobody-of-this-name/x") == LocalPath("~nobody-of-this-name/x")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES, errno.EXDEV, errno.EPERM])
def test_a_file_system_that_has_no_links_renames_whatever_it_calls_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    file = LocalPath(tmp_path / "a")
    assert file.create([b"first"])
    assert not file.create([b"second"])
    assert file.read_bytes() == b"first"


def test_a_store_that_is_moved_while_it_is_written_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    file = LocalPath(tmp_path / "s" / "a")
    (tmp_path / "s").rename(tmp_path / "moved")
    for write in (lambda: file.create([b"a"]), lambda: file.overwrite(b"a")):
        with pytest.raises(StorageError, match=r"its folder is gone .was the store moved.*--out"):
            write()


def test_an_out_that_cannot_be_made_is_told_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(MismatchError, match=r"link: is a link to .*nothing, where nothing is"):
        LocalPath(tmp_path / "link").check_access()
    (tmp_path / "nothing").mkdir()
    LocalPath(tmp_path / "link").check_access()
    LocalPath(tmp_path / ("a" * 241)).check_access()
    with pytest.raises(MismatchError, match="its name has 242 bytes, at most 241"):
        LocalPath(tmp_path / ("a" * 242)).check_access()
