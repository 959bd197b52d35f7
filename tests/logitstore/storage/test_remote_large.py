"""A store of very many shards in a bucket: the limits are lowered, so that five are very many."""

import hashlib
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError
from logitstore.format import plan as plans
from logitstore.reading import index_file, shard_ends, shard_table
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket
from logitstore.writing import sealing

CUTS = (0, 2, 4, 5, 8, 10)
PLAN = f"s/plan-{hashlib.sha256(np.array(CUTS, '<u8').tobytes()).hexdigest()[:16]}.u64"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "MOST_IN_JSON", 2)
        stores.write(path, boundaries=CUTS)
    return path


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than two shards are kept as a hundred thousand are, and read as a million."""
    monkeypatch.setattr(plans, "MOST_IN_JSON", 2)
    monkeypatch.setattr(index_file, "MOST_KEPT", 2)
    for module in (shard_table, sealing):
        monkeypatch.setattr(module, "WORTH_PROCESSES", 2)
    for name, value in (("MOST_KEPT", 2), ("MOST_LISTED", 2)):
        monkeypatch.setattr(shard_table, name, value)
    monkeypatch.setattr(shard_ends, "BLOCK", 2)
    monkeypatch.setattr(shard_ends, "cores", lambda: 1)  # the limits are this process's


@pytest.fixture
def url(bucket: Bucket, limits: None, written: Path) -> str:
    return bucket.upload(written, "s")


def test_it_is_the_store_that_a_folder_has(
    bucket: Bucket, limits: None, written: Path, tmp_path: Path
) -> None:
    url = f"{bucket.url}/s"
    stores.write(url, boundaries=CUTS, shards=(3, 0), seal=False)
    stores.write(url, boundaries=CUTS)
    assert bucket.tree("s") == stores.tree(written)
    there, here = open_store(url), open_store(written)
    assert there.token_counts.tolist() == here.token_counts.tolist()
    assert there.sequence_rows.tolist() == here.sequence_rows.tolist()
    for i in range(len(here)):
        assert np.array_equal(there[i].token_ids, here[i].token_ids)
    assert len(list((tmp_path / "cache" / "indexes").glob("*.parquet"))) == 1


def test_it_is_opened_without_a_listing_and_without_a_look_at_its_shards(
    url: str, bucket: Bucket
) -> None:
    bucket.requests.clear()
    store = open_store(url)
    assert store.rows_held == 10
    asked = [path for _, path in bucket.requests]
    assert not [path for path in asked if "shards" in path]


def test_all_of_it_is_checked_and_what_is_lost_is_named(url: str, bucket: Bucket) -> None:
    report = verify_store(url, deep=True)
    assert (report.shards, report.rows, report.damaged) == (5, 10, [])
    bucket.client.delete_object(Bucket="a-bucket", Key="s/shards/00002.zarr.zip")
    lost = verify_store(url).damaged
    assert [(d.file, d.rows) for d in lost] == [("shards/00002.zarr.zip", (4, 4))]
    with pytest.raises(CorruptStoreError, match="00002"):
        _ = open_store(url)[4].token_ids


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        (PLAN, lambda raw: None, r"plan-.{16}\.u64: it is missing\. The shards beside it are"),
        (PLAN, lambda raw: raw[:-8], "it is not the file that store.json describes"),
        ("s/index.parquet", lambda raw: raw[:99] + b"!" + raw[100:], "not the file that was seal"),
    ],
    ids=["plan lost", "plan cut off", "index changed"],
)
def test_its_files_beside_the_shards_are_not_believed(
    url: str, bucket: Bucket, name: str, spoil: Any, says: str
) -> None:
    data = spoil(bucket.get(name))
    if data is None:
        bucket.client.delete_object(Bucket="a-bucket", Key=name)
    else:
        bucket.put(name, data)
    with pytest.raises(CorruptStoreError, match=says):
        _ = open_store(url).token_counts


def test_an_index_that_is_lost_is_made_anew(url: str, bucket: Bucket) -> None:
    index = bucket.get("s/index.parquet")
    bucket.put("s/index.parquet", b"spoilt")
    repair_store(url)
    assert bucket.get("s/index.parquet") == index
    assert verify_store(url, deep=True).damaged == []


def test_it_may_be_in_memory(limits: None, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4().hex}/s"
    stores.write(url, boundaries=CUTS)
    assert verify_store(url, deep=True).damaged == []
    assert open_store(url).token_counts.sum() > 0
