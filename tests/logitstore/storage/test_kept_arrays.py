"""Arrays that are kept: whole or not at all, made once, mapped where they are large."""

import mmap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from logitstore.storage import kept_arrays
from logitstore.storage.kept_arrays import keep, kept_array, mapped

PARTS = [np.arange(5), np.arange(5, 12)]
WHOLE = list(range(12))


def base_of(array: np.ndarray) -> object:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def test_a_large_array_is_mapped_and_a_small_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = keep(tmp_path / "a.i64", PARTS)
    monkeypatch.setattr(kept_arrays, "MAPPED_BYTES", 8)
    large = mapped(tmp_path / "a.i64", 12)
    assert small.tolist() == large.tolist() == WHOLE
    assert isinstance(base_of(large), mmap.mmap)
    assert not isinstance(base_of(small), mmap.mmap)
    assert not large.flags.writeable
    assert not small.flags.writeable


@pytest.mark.parametrize("least", [8, 1 << 26])
def test_a_damaged_or_short_array_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(kept_arrays, "MAPPED_BYTES", least)
    kept_array(tmp_path, "x", 12, lambda: PARTS)
    (file,) = (tmp_path / "sequences").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-8], b"", b"\1" + whole[1:], whole + bytes(8)):
        file.unlink()
        file.write_bytes(damaged)
        assert kept_array(tmp_path, "x", 12, lambda: PARTS).tolist() == WHOLE
        assert file.read_bytes() == whole


def test_an_array_of_another_length_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an array of 11"):
        kept_array(tmp_path, "x", 11, lambda: PARTS)


def test_what_fails_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield PARTS[0]
        raise KeyError("a shard")

    with pytest.raises(KeyError):
        kept_array(tmp_path, "x", 12, broken)
    assert list((tmp_path / "sequences").iterdir()) == []


def test_without_a_cache_an_array_is_made_in_memory(tmp_path: Path) -> None:
    (tmp_path / "sequences").write_text("a file in the way")
    assert kept_array(tmp_path, "x", 12, lambda: PARTS).tolist() == WHOLE


def test_one_makes_it_while_the_others_wait(tmp_path: Path) -> None:
    made, begun = [], threading.Event()

    def slowly() -> Iterator[np.ndarray]:
        made.append(threading.current_thread().name)
        begun.wait(0.2)
        yield from PARTS

    def ask() -> None:
        assert kept_array(tmp_path, "x", 12, slowly).tolist() == WHOLE

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(made) == 1
