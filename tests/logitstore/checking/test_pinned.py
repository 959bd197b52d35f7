"""What a seal pins is compared when a store is opened; what cannot be is found by verify."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.checking import shard_check
from logitstore.checking.nonsense import nonsense
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError
from logitstore.format.canonical_json import canonical_json
from logitstore.format.distances import unpack
from logitstore.format.spec import StoreHeader
from logitstore.format.zip_archive import DIGEST_CHARS, END, Archive, pack
from logitstore.reading.shard import Shard
from logitstore.records import TokenRecords
from logitstore.storage.paths import StorePath
from logitstore.testing import stores
from tests.kit.hostile import edit_spec
from tests.kit.made_stores import put

SHARD = "shards/00001.zarr.zip"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pinned") / "s"
    put(path, stores.spec(temperatures=(2.0,), logit_std=True))
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "s")


def other_provenance(store: Path) -> None:
    """No digest in `store.json` covers it; `repair --capture` takes its commands from there."""
    header = StoreHeader.read(store)
    (store / "store.json").write_bytes(
        replace(header, provenance={"teacher": "another"}).to_bytes()
    )


def null_in_seal(store: Path) -> None:
    done = json.loads((store / "DONE").read_bytes())
    del done["sha256_of_this"]
    done["sha256"]["store.json"] = None
    own = hashlib.sha256(canonical_json(done)).hexdigest()
    (store / "DONE").write_bytes(canonical_json(done | {"sha256_of_this": own}))


@pytest.mark.parametrize(
    ("change", "file", "says"),
    [
        (other_provenance, "store.json", "is not the one that the store was sealed with"),
        (null_in_seal, "DONE", "has a digest that is not 64 hex digits"),
    ],
)
def test_a_store_is_opened_as_it_was_sealed(
    change: Callable[[Path], None], file: str, says: str, store: Path
) -> None:
    change(store)
    with pytest.raises(CorruptStoreError, match=says) as caught:
        open_store(store)
    assert caught.value.path.name == file
    assert [d.file for d in verify_store(store).damaged] == [file]


def test_an_end_that_no_token_can_be_is_no_spec() -> None:
    spec = stores.spec()
    size = spec.tokenizer["size"]
    replace(spec, tokenizer=spec.tokenizer | {"eos_ids": [size - 1]}).check()
    with pytest.raises(ValueError, match="eos_ids are not all below"):
        replace(spec, tokenizer=spec.tokenizer | {"eos_ids": [size]}).check()


def draws(count: list[int], ids: list[int], times: list[int]) -> dict[str, Any]:
    return {
        "draw_count": np.array(count, np.uint16),
        "sample_ids": np.array(ids, np.uint32),
        "sample_counts": np.array(times, np.uint8),
    }


def test_draws_of_the_first_layout_ascend_and_were_drawn() -> None:
    records = np.array([2, 1])
    unpack(draws([2, 0, 2], [3, 9, 1, 1], [1, 255, 255, 2]), records)  # a new record begins anew
    unpack(draws([0, 0, 0], [], []), records)
    with pytest.raises(ValueError, match="drawn 0 times"):
        unpack(draws([2, 0, 1], [3, 9, 1], [1, 0, 2]), records)
    with pytest.raises(ValueError, match="do not ascend"):
        unpack(draws([2, 0, 1], [9, 3, 10], [1, 1, 2]), records)


@pytest.mark.parametrize("name", ["lognorm", "logit_std", "lognorm_std"])
def test_a_scalar_that_is_no_number_makes_no_sense(name: str, whole: Path) -> None:
    opened = open_store(whole)
    good = opened[0]
    fields = {field: getattr(good, field) for field in TokenRecords.__slots__}
    values = fields[name].copy()
    values[..., -1] = np.nan
    end = len(opened.text(0).supervised_bytes)
    found = list(nonsense(TokenRecords(**fields | {name: values}), opened.spec, 0, end))
    assert found == [f"{name} holds a value that is not a number"]


def unsealed(store: Path, data: bytes) -> list[str]:
    """What verify says of a store with another shard, before anything pins its bytes."""
    for name in ("DONE", "index.parquet"):
        (store / name).unlink()
    (store / SHARD).write_bytes(data)
    return [d.reason for d in verify_store(store, deep=True, allow_partial=True).damaged]


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lambda s: {"empty": sum(s.values())}, "the statuses of its lines are not those"),
        (lambda s: {"ok": sum(s.values()) + 1, "x": -1}, "its statuses do not add up"),
    ],
)
def test_statuses_that_lie_are_found(
    lie: Callable[[dict[str, int]], dict[str, int]], says: str, store: Path
) -> None:
    archive = Archive(store / SHARD)
    members = {name: bytes(archive[name]) for name in archive.names}
    group = json.loads(members["zarr.json"])
    about = group["attributes"]["logitstore"]
    about["statuses"] = lie(about["statuses"])
    members["zarr.json"] = canonical_json(group)
    (found,) = unsealed(store, b"".join(bytes(piece) for piece in pack(members)))
    assert says in found


def test_a_wrong_checksum_of_a_member_is_found(store: Path) -> None:
    """Nothing else reads the zip's own checksums of arrays, which have finer ones."""
    archive = Archive(store / SHARD)
    crc = struct.pack("<I", archive.members["token_ids/c/0"].crc)
    data = (store / SHARD).read_bytes()
    assert data.count(crc) == 2
    body = data.replace(crc, bytes(4))[: -END.size - DIGEST_CHARS]
    digest = hashlib.sha256(body).hexdigest().encode()
    (found,) = unsealed(store, body + data[len(body) : -DIGEST_CHARS] + digest)
    assert "token_ids/c/0 do not match their checksum" in found


def test_thousands_of_lost_shards_are_told_in_a_few_lines(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight bytes of a `store.json` say of each that it is there; that cost an open file."""
    looked_at: list[int] = []
    opened = shard_check._opened

    def counted(path: StorePath, header: StoreHeader, index: int) -> Shard:
        looked_at.append(index)
        return opened(path, header, index)

    monkeypatch.setattr(shard_check, "_opened", counted)
    edit_spec(store, lambda body: body["plan"].update(boundaries=[0, 3, *range(7, 20_000)]))
    report = verify_store(store)
    assert looked_at == [0, 1, 2]
    assert (report.shards, report.rows) == (19_994, 19_999)
    lost = [d for d in report.damaged if d.kind == "missing-file"]
    assert len(lost) == 1001
    assert [d.rows for d in (lost[0], lost[-1])] == [(8, 8), (1008, 19_998)]
    assert "and so are 18,990 after it" in lost[-1].reason
    done = repair_store(store)
    assert done.missing_shards >= 19_991
    assert not done.is_complete
