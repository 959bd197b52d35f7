"""Large stores on small machines: what opening, counting and reading cost does not grow with them.

Memory is measured in processes of their own; a limit on the address space is as hard as one can be.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.errors import LogitStoreError
from logitstore.format.encoded import NOTHING_MEASURED
from logitstore.format.index import encode_index
from logitstore.format.seal import seal_bytes, sealed_names
from logitstore.format.spec import Plan, StoreHeader, shard_name
from logitstore.reading.shard import Shard
from logitstore.reading.shard_head import Skimmed, index_line
from logitstore.storage import commit
from logitstore.storage.files import file_sha256
from logitstore.storage.paths import store_path
from logitstore.testing import stores
from logitstore.testing.buckets import Bucket
from tests.kit.made_stores import put
from tests.kit.paths import ROOT

SHARDS, ROWS_A_SHARD = 10_000, 2_000
ROOM_BYTES = 150 * 2**20

OPENS = """
import json, sys
import logitstore
import logitstore.store  # which is else imported when a store is first opened
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
imported = peak()
store = logitstore.open_store(sys.argv[1], allow_partial=len(sys.argv) > 2)
held, rows = len(store.shards), store.rows_held
sequences = len(store) if store.is_complete else None
print(json.dumps({"more": peak() - imported, "held": held, "rows": rows, "sequences": sequences}))
"""


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 10,000 shards by its plan, listing and index; the shards themselves are empty."""
    path = tmp_path_factory.mktemp("huge") / "s"
    of = stores.spec()
    plan = Plan("d" * 64, tuple(range(0, SHARDS * ROWS_A_SHARD + 1, ROWS_A_SHARD)))
    commit.make_folder(path / "shards")
    commit.make_folder(path / "tokenizer")
    for name, data in stores.TOKENIZER_FILES.items():
        (path / "tokenizer" / name).write_bytes(data)
    for i in range(SHARDS):
        (path / "shards" / shard_name(i)).touch()
    (path / "store.json").write_bytes(StoreHeader(of, plan, {}).to_bytes())
    (path / "index.parquet").write_bytes(encode_index([line(plan, i) for i in range(SHARDS)]))
    digests = {name: file_sha256(path / name) for name in sealed_names(of)}
    (path / "DONE").write_bytes(seal_bytes(digests))
    return path


def line(plan: Plan, index: int) -> dict[str, Any]:
    first, stop = plan.shard_rows(index)
    counts = {"sequences": ROWS_A_SHARD, "records": 10**6, "entries": 64 * 10**6, "draws": 0}
    return {
        "shard": index,
        "first_row": first,
        "stop_row": stop,
        "supervised_bytes": 4 * 2**20,
        "file_bytes": 110 * 10**6 + index,
        "sha256": hashlib.sha256(str(index).encode()).hexdigest(),
        "statuses": json.dumps({"ok": ROWS_A_SHARD}),
        **counts,
        **NOTHING_MEASURED,
    }


def run(code: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_opening_ten_thousand_shards_takes_little_memory(huge: Path) -> None:
    found = run(OPENS, str(huge))
    print(found)
    assert found["more"] <= ROOM_BYTES, found
    assert (found["held"], found["sequences"]) == (SHARDS, SHARDS * ROWS_A_SHARD)


def test_opening_ten_thousand_shards_of_an_unfinished_store_is_one_listing(huge: Path) -> None:
    (huge / "DONE").rename(huge / "not DONE")
    try:
        found = run(OPENS, str(huge), "partial")
    finally:
        (huge / "not DONE").rename(huge / "DONE")
    assert found["more"] <= ROOM_BYTES, found
    assert found["rows"] == SHARDS * ROWS_A_SHARD


def test_opening_ten_thousand_shards_of_a_bucket_is_one_index_read(
    bucket: Bucket, huge: Path
) -> None:
    for name in ("store.json", "DONE", "index.parquet"):
        bucket.put(f"huge/{name}", (huge / name).read_bytes())
    bucket.requests.clear()
    found = run(OPENS, f"{bucket.url}/huge")
    assert found["more"] <= ROOM_BYTES, found
    assert found["sequences"] == SHARDS * ROWS_A_SHARD
    assert len(bucket.requests) <= 7


# -- what stays open -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 shards of one row each."""
    path = tmp_path_factory.mktemp("many") / "s"
    put(path, stores.spec(vocab_size=50, top_k=3), tuple(range(101)))
    return path


def opened(folder: Path) -> int:
    """How many files of a folder this process has open; any that it has mapped is one too many."""
    assert str(folder) not in Path("/proc/self/maps").read_text()
    names = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    return len([name for name in names if str(folder) in name])


def test_open_shards_are_bounded_whatever_the_reader_keeps(many: Path) -> None:
    store = open_store(many)
    kept = [(store[i], store.text(i)) for i in range(100)]
    assert opened(many) == 64
    del store
    assert opened(many) == 0, "records keep their shards open"
    assert sum(len(records) for records, _ in kept) > 0


def test_counting_opens_no_shard(many: Path) -> None:
    store = open_store(many)
    counts, rows = store.token_counts, store.sequence_rows
    assert opened(many) == 0
    assert rows.tolist() == list(range(100))
    assert counts.tolist() == [len(store[i]) for i in range(100)]


# -- a pass over more than there is room for -----------------------------------------------------

READS = """
import json, resource, sys
import logitstore
store = logitstore.open_store(sys.argv[1])
first = len(store[0])
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = held + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
records = sum(len(store[i]) for i in range(len(store)))
texts = len({store.text(i).row for i in range(len(store))})
print(json.dumps({"records": records, "texts": texts}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """16 shards of several megabytes, each with the same records; and their bytes."""
    path, of = tmp_path_factory.mktemp("large") / "s", stores.spec(vocab_size=5000, top_k=64)
    plan = Plan("d" * 64, tuple(range(0, 65, 4)))
    rng = np.random.default_rng(0)
    pieces = ["word "] * 2500
    encoded = stores.encode_records(stores.raw_records(of, pieces, rng), of)
    writer = stores.StoreWriter(path, of, plan, stores.TOKENIZER_FILES)
    for index in range(16):
        segments = (stores.Segment("".join(pieces), True),)
        rows = range(*plan.shard_rows(index))
        lines = [stores.SequenceText(row, 0, "ok", segments, 0, None) for row in rows]
        writer.write_shard(index, [(line, encoded) for line in lines])
    writer.seal()
    return path, sum(p.stat().st_size for p in (path / "shards").iterdir())


def test_a_pass_over_a_store_larger_than_the_limit_stays_below_it(large: tuple[Path, int]) -> None:
    path, size = large
    room = 12 * 2**20
    assert size > 1.5 * room
    found = run(READS, str(path), str(room))
    assert found == {"records": 64 * 2501, "texts": 64}


# -- the end of a shard --------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2])
def test_the_end_of_a_shard_says_what_the_whole_says(tmp_path: Path, parts: int) -> None:
    of = put(tmp_path / "s", parts=parts)
    plan = Plan("d" * 64, (0, 3, 7, 12))
    for index in range(3):
        path = store_path(tmp_path / "s") / "shards" / shard_name(index)
        whole, end = Shard(path, of, plan, index), Skimmed(path, of, plan, index)
        assert index_line(end, index) == index_line(whole, index)
        assert end.token_counts.tolist() == np.diff(whole.record_offsets).tolist()
        assert end.sequence_rows.tolist() == whole.sequence_rows().tolist()
        with zipfile.ZipFile(path) as archive:
            infos = [i for i in archive.infolist() if not i.filename.endswith("zarr.json")]
        assert end.member_bytes() == {i.filename.split("/")[0]: i.file_size for i in infos}


def test_a_flipped_byte_never_changes_what_the_end_says(tmp_path: Path) -> None:
    of = put(tmp_path / "s", parts=2)
    plan, path = Plan("d" * 64, (0, 3, 7, 12)), tmp_path / "s" / "shards" / shard_name(1)
    data, rng, refused = path.read_bytes(), np.random.default_rng(0), 0

    def said() -> tuple[Any, ...]:
        end = Skimmed(store_path(path), of, plan, 1)
        facts = index_line(end, 1)
        del facts["sha256"]  # a flip in the digest is another digest, which the index does not know
        return facts, end.token_counts.tolist(), end.sequence_rows.tolist(), end.member_bytes()

    expected = said()
    for _ in range(400):
        at = int(rng.integers(len(data)))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :])
        try:
            assert said() == expected
        except LogitStoreError:
            refused += 1
    assert refused > 100
    for cut in (0, 10, 85, 86, 200, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(LogitStoreError, match=r"rows 3 to 6"):
            said()
