"""Two that write to one place: nobody writes to a store before it is known to be theirs."""

import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, MismatchError
from logitstore.format.spec import Plan, StoreHeader
from logitstore.storage.commit import OsFs
from logitstore.storage.files import Buffer
from logitstore.testing import stores
from logitstore.writing.digests import tokenizer_digests
from logitstore.writing.writer import StoreWriter

OTHERS = {"tokenizer.json": b"another teacher's"}
PLAN = Plan("d" * 64, (0, 3, 6))


def writer(path: Path, files: Any = stores.TOKENIZER_FILES, fs: Any = None) -> StoreWriter:
    spec = stores.spec()
    spec = replace(spec, tokenizer=spec.tokenizer | {"files": tokenizer_digests(files)})
    more = {} if fs is None else {"fs": fs}
    return StoreWriter(path, spec, PLAN, files, {"tokens_per_batch": 64}, **more)


def write_all(of: StoreWriter) -> None:
    for index in of.missing():
        rows = range(*PLAN.shard_rows(index))
        of.write_shard(index, [s for r in rows for s in stores.row_sequences(of.spec, r)])


class HeldFs(OsFs):
    """Stops before it first changes anything, until it is let go."""

    def __init__(self) -> None:
        self.is_held, self.go = threading.Event(), threading.Event()

    def _wait(self) -> None:
        self.is_held.set()
        assert self.go.wait(60)

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
        self._wait()
        super().write_durably(path, pieces)

    def sync_folder(self, path: Path) -> None:
        self._wait()
        super().sync_folder(path)


def test_a_second_teacher_that_comes_late_leaves_the_first_ones_store_as_it_is(
    tmp_path: Path,
) -> None:
    """It saw an empty place, and was stopped until the first had written and sealed."""
    fs, raised = HeldFs(), list[BaseException]()

    def second() -> None:
        try:
            writer(tmp_path / "s", OTHERS, fs)
        except MismatchError as error:
            raised.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    assert fs.is_held.wait(60)
    first = writer(tmp_path / "s")
    write_all(first)
    first.seal()
    before = stores.tree(tmp_path / "s")
    fs.go.set()
    thread.join(60)
    assert "tokenizer.files" in str(raised[0])
    assert stores.tree(tmp_path / "s") == before
    assert not verify_store(tmp_path / "s", deep=True).damaged


def replaced(store: Path) -> None:
    shutil.rmtree(store / "tokenizer")
    (store / "tokenizer").mkdir()
    for name, data in OTHERS.items():
        (store / "tokenizer" / name).write_bytes(data)


def with_more(store: Path) -> None:
    (store / "tokenizer" / "added_tokens.json").write_bytes(b"{}")


@pytest.mark.parametrize("change", [replaced, with_more, lambda s: shutil.rmtree(s / "tokenizer")])
def test_a_seal_pins_the_tokenizer_that_the_store_was_begun_with(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    """Whatever an older version, or anyone, put there meanwhile."""
    of = writer(tmp_path / "s")
    write_all(of)
    change(tmp_path / "s")
    of.seal()
    found = {p.name: p.read_bytes() for p in (tmp_path / "s" / "tokenizer").iterdir()}
    assert found == stores.TOKENIZER_FILES
    assert not verify_store(tmp_path / "s", deep=True).damaged


def test_a_store_json_that_changed_while_shards_were_written_is_not_sealed(tmp_path: Path) -> None:
    of = writer(tmp_path / "s")
    write_all(of)
    begun = (tmp_path / "s" / "store.json").read_bytes()
    header = StoreHeader.read(tmp_path / "s")
    other = replace(header, provenance={"teacher": "another"})
    (tmp_path / "s" / "store.json").write_bytes(other.to_bytes())
    with pytest.raises(CorruptStoreError, match=r"store\.json: was changed while the store was"):
        of.seal()
    assert not (tmp_path / "s" / "DONE").exists()
    (tmp_path / "s" / "store.json").write_bytes(begun)
    of.seal()
    assert not verify_store(tmp_path / "s").damaged


def test_files_that_are_not_those_of_the_spec_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other digests"):
        StoreWriter(tmp_path / "s", stores.spec(), PLAN, OTHERS)
    assert not (tmp_path / "s").exists()


def test_a_store_that_was_stopped_before_its_tokenizer_is_begun_and_not_damaged(
    tmp_path: Path,
) -> None:
    writer(tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "tokenizer")
    assert not verify_store(tmp_path / "s", allow_partial=True).damaged
    assert not repair_store(tmp_path / "s").moved
    of = writer(tmp_path / "s")
    write_all(of)
    shutil.rmtree(tmp_path / "s" / "tokenizer")
    assert verify_store(tmp_path / "s", allow_partial=True).damaged
