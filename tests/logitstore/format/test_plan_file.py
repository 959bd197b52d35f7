"""A plan of many shards has its boundaries in a file of their own; all else is as it always was."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, InputError, LogitStoreError, MismatchError
from logitstore.format import plan as plans
from logitstore.format.plan import Plan
from logitstore.format.spec import StoreHeader
from logitstore.storage.paths import store_path
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket
from logitstore.writing.plan import make_plan
from logitstore.writing.writer import StoreWriter
from tests.kit import reader_from_spec
from tests.kit.hostile import edit_spec

CUTS = (0, 2, 3, 6)
LARGE = Plan("d" * 64, np.array(CUTS), version=2)
OTHER = Plan("d" * 64, np.array([0, 5, 6]), version=2)
SMALL = Plan("d" * 64, np.array(CUTS), version=1)
NAME = "plan-891842c6e3022e66.u64"


def write(path: Any, plan: Plan = LARGE) -> StoreWriter:
    of = stores.spec()
    writer = StoreWriter(path, of, plan, stores.TOKENIZER_FILES, {"tokens_per_batch": 64})
    for index in writer.missing():
        rows = range(*plan.shard_rows(index))
        writer.write_shard(index, [s for row in rows for s in stores.row_sequences(of, row)])
    writer.seal()
    return writer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "s"
    write(path)
    return path


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "s"))


def test_the_bytes_of_a_plan_of_version_2_stay(written: Path) -> None:
    """Golden: what was written once is read for ever."""
    raw = np.array(CUTS, "<u8").tobytes()
    assert (written / NAME).read_bytes() == raw
    body = json.loads((written / "store.json").read_bytes())
    assert body["version"] == 2
    assert body["plan"] == {
        "boundaries_sha256": hashlib.sha256(raw).hexdigest(),
        "dataset_sha256": "d" * 64,
        "rows": 6,
        "shards": 3,
    }
    assert body["plan_sha256"] == (
        "45b9d4b388bdd7bd86c31bbe94473fd2dc7fc6c31d8baf34def519235e7595b0"
    )
    assert sorted(json.loads((written / "DONE").read_bytes())["sha256"]) == [
        "index.parquet",
        "store.json",
        "tokenizer/special.txt",
        "tokenizer/tokenizer.json",
    ], "store.json pins the file"


def test_a_store_with_either_plan_says_the_same(written: Path, tmp_path: Path) -> None:
    write(tmp_path / "small", SMALL)
    one, other = open_store(written), open_store(tmp_path / "small")
    assert one.plan == other.plan
    assert one.digest != other.digest
    for i in range(len(one)):
        assert one[i].token_ids.tolist() == other[i].token_ids.tolist()
        assert one.text(i) == other.text(i)
    assert verify_store(written, deep=True).damaged == []
    _, plan, sequences = reader_from_spec.read_store(written)
    assert plan["boundaries"] == list(CUTS)
    assert len(sequences) == len(one)


def test_only_a_plan_of_more_than_a_hundred_thousand_shards_has_the_file() -> None:
    """No store that fitted its plan into `store.json` without harm has other bytes than before."""
    assert Plan("d" * 64, np.arange(100_001)).version == 1
    assert Plan("d" * 64, np.arange(100_002)).version == 2
    assert Plan("d" * 64, np.arange(100_001)).files() == {}


def test_a_store_that_was_begun_with_a_large_plan_in_json_is_resumed_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StoreWriter(tmp_path / "s", stores.spec(), SMALL, stores.TOKENIZER_FILES)
    described = (tmp_path / "s" / "store.json").read_bytes()
    monkeypatch.setattr(plans, "MOST_IN_JSON", 1)
    now = Plan("d" * 64, np.array(CUTS))
    assert now.version == 2
    writer = write(tmp_path / "s", now)
    assert writer.plan.version == 1
    assert (tmp_path / "s" / "store.json").read_bytes() == described
    assert list((tmp_path / "s").glob("plan-*")) == []
    assert len(open_store(tmp_path / "s")) > 0


def test_a_plan_cut_in_parts_is_the_plan_cut_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = np.random.default_rng(0).integers(0, 90, 1000)
    before = np.cumsum(sizes + 1) - (sizes + 1)
    expected = [*np.flatnonzero(np.diff(before // 100, prepend=-1)), 1000]
    monkeypatch.setattr("logitstore.writing.plan._PART_ROWS", 7)
    assert make_plan("d" * 64, sizes, 100).boundaries.tolist() == expected


def test_more_shards_than_a_store_can_have_are_refused_before_it_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("logitstore.writing.plan.MOST_SHARDS_OF_ALL", 10)
    assert make_plan("d" * 64, np.full(10, 4), 5).shard_count == 10
    with pytest.raises(InputError, match=r"11 shards .* --shard-text-bytes"):
        make_plan("d" * 64, np.full(11, 4), 5)


def said(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_spec(path, lambda body: body["plan"].update(changes))


def file_with(
    change: Callable[[bytes], bytes], *, described: bool = False
) -> Callable[[Path], None]:
    """Change the file; if `described`, `store.json` has its digest all the same."""

    def change_it(path: Path) -> None:
        raw = change((path / NAME).read_bytes())
        if not described:
            (path / NAME).write_bytes(raw)
            return
        digest = hashlib.sha256(raw).hexdigest()
        (path / f"plan-{digest[:16]}.u64").write_bytes(raw)
        said(boundaries_sha256=digest)(path)

    return change_it


def cuts(*values: int) -> Callable[[Path], None]:
    return file_with(lambda _: np.array(values, "<u8").tobytes(), described=True)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no file": lambda path: (path / NAME).unlink(),
    "another boundary that can be": file_with(lambda raw: raw[:8] + b"\1" + raw[9:]),
    "a file cut off": file_with(lambda raw: raw[:-8]),
    "a longer file": file_with(lambda raw: raw + bytes(8)),
    "a folder": lambda path: ((path / NAME).unlink(), (path / NAME).mkdir())[1],
}
HOSTILE: dict[str, Callable[[Path], None]] = {
    "boundaries that fall": cuts(0, 3, 2, 6),
    "boundaries that do not begin with 0": cuts(1, 2, 3, 6),
    "boundaries beyond all rows": cuts(0, 2, 3, 2**48),
    "boundaries below zero": cuts(0, 2, 3, 2**64 - 1),
    "another last row": said(rows=7),
    "rows of a fraction": said(rows=6.0),
    "more shards than there is room for": said(shards=2**24 + 1),
    "a number of shards that is true": said(shards=True),
    "fewer shards": said(shards=2),
    "no shards": said(shards=0),
    "no digest": said(boundaries_sha256=7),
    "a digest in capitals": said(boundaries_sha256="A" * 64),
    "a path for a digest": said(boundaries_sha256="../" * 16 + "0" * 16),
    "a field more": said(more=1),
    "boundaries, too": said(boundaries=list(CUTS)),
    "version 1": lambda path: edit_spec(path, lambda body: body.update(version=1)),
    "version 3": lambda path: edit_spec(path, lambda body: body.update(version=3)),
    "a version that is true": lambda path: edit_spec(path, lambda body: body.update(version=True)),
}


@pytest.mark.parametrize("name", [*DAMAGE, *HOSTILE])
def test_both_readers_refuse(store: Path, name: str) -> None:
    (DAMAGE | HOSTILE)[name](store)
    with pytest.raises(LogitStoreError):
        open_store(store)
    with pytest.raises(reader_from_spec.RefusedError):
        reader_from_spec.read_store(store)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_of_the_file_is_found_by_name_and_made_good_by_the_same_command(
    store: Path, name: str
) -> None:
    raw = (store / NAME).read_bytes()
    DAMAGE[name](store)
    found = verify_store(store)
    assert [d.file for d in found.damaged] == [NAME]
    assert found.damaged[0].kind == ("missing-file" if name == "no file" else "corrupt")
    with pytest.raises(CorruptStoreError, match=r"plan-8918.*made the store again"):
        repair_store(store)
    if name == "a folder":
        (store / NAME).rmdir()
    with pytest.raises(CorruptStoreError):  # whoever has another plan, changes nothing
        StoreWriter(
            store, stores.spec(), Plan("e" * 64, np.array([0, 5, 6]), 2), stores.TOKENIZER_FILES
        )
    assert StoreWriter(store, stores.spec(), LARGE, stores.TOKENIZER_FILES).is_sealed
    assert (store / NAME).read_bytes() == raw
    assert verify_store(store, deep=True).damaged == []


def test_what_a_writer_left_that_died_before_store_json_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (path / "shards").mkdir(parents=True)
    (path / NAME).write_bytes(b"half")
    (path / "plan-0123456789abcdef.u64").write_bytes(b"another's")
    from logitstore.writing.places import check_place

    check_place(path)
    write(path)
    assert len(open_store(path)) > 0


def test_a_resume_with_other_boundaries_says_so(store: Path) -> None:
    with pytest.raises(MismatchError, match=r"plan.boundaries is \[0, 2, 3, 6\]"):
        StoreWriter(store, stores.spec(), OTHER, stores.TOKENIZER_FILES)


def test_a_store_in_a_bucket_has_the_file_too(bucket: Bucket, written: Path) -> None:
    url = f"{bucket.url}/large"
    write(url)
    header = StoreHeader.read(store_path(url))
    assert header.to_bytes() == (written / "store.json").read_bytes()
    assert header.plan == LARGE
    assert [len(r) for r in open_store(url)] == [len(r) for r in open_store(written)]


def test_a_plan_compares_by_what_it_divides() -> None:
    assert SMALL == LARGE
    assert replace(LARGE, dataset_sha256="e" * 64) != LARGE
    assert hash(SMALL) == hash(LARGE)
    assert SMALL != "a plan"
