"""Bytes on disk are a promise. These fail when the promise changes, and only then.

Never edit a golden store to make this pass. A changed byte means a new FORMAT_VERSION, a new golden
beside the old ones, and a line in CHANGELOG.md.

Parquet files name their writer, so those made by another pyarrow are compared by what they say; so
is fidelity, whose last digit may depend on the processor. Everything else is compared by bytes.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from logitstore import open_store
from logitstore.checking.verify import verify_store
from logitstore.format.zip_archive import Archive
from tests.kit import golden_stores
from tests.kit.golden_stores import GOLDEN, VARIANTS
from tests.logitstore.format.test_reader_from_spec import assert_same

SHARD = "shards/00000.zarr.zip"
#: SHA-256 of each DONE, which pins every other byte.
DIGESTS: dict[str, str] = {
    "plain": "1a4732c75e6a62f038304788df7b86bf20aeb99c2b5e4d69c58a5bfa419f7f53",
    "values-only": "9d3295a12e4cce460fa8550b4104d81d47ad75e2d3353aa7d991b449ee5ef555",
    "temperatures": "edf9db53a15bd7cbbb7f1cbece3c172d10d2c7d71dfa6af3190d766ec772e163",
    "logit-std": "85a87f8c6c655292cde735c4ffcb0a1490b80c2e1955c0eb6dab3cd4527ccf2a",
    "draws": "bcf103b5a497e0bc157d822c4a7ee8c3b902e9bfcebc023e69861089f6bd560a",
    "compact": "0bd0d2a7b5c8f64204d6aba7757924cb6228633871133666ef86484ce5782e35",
    "gaps": "aac83e36cbede9d01f735b4cb09540b5f111dcffda574dac3809f6b773c55c23",
    "no-entries": "af7c59ecf4072854b462536d51b70f4af119d0eca905beac055da8914028f4cf",
    "parts": "885d9cdf5db2879a216705e9bbe62b37cbc12dbbf187c43b2879d13a1797065a",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_golden_store_is_the_one_that_was_made(name: str) -> None:
    done = (GOLDEN / f"v1-{name}" / "DONE").read_bytes()
    assert hashlib.sha256(done).hexdigest() == DIGESTS[name]
    assert verify_store(GOLDEN / f"v1-{name}", deep=True).damaged == []


@pytest.mark.parametrize("name", VARIANTS)
def test_a_store_written_by_v1_still_reads(name: str) -> None:
    assert assert_same(GOLDEN / f"v1-{name}") == (6 if name == "parts" else 3)
    store = open_store(GOLDEN / f"v1-{name}")
    records = store[0]
    assert records.token_ids.tolist() == [3, 40, 0]
    assert records.byte_starts.tolist() == [0, 8, 12]
    assert records.byte_lengths.tolist() == [8, 4, 0]
    headless = name == "no-entries"
    assert records.entry_count.tolist() == ([0, 0, 0] if headless else [3, 2, 1])
    p, tail = np.exp(records.entry_logprobs), np.exp(records.tail_logmass)
    np.testing.assert_allclose(p, [] if headless else [0.5, 0.25, 0.125, 0.9, 0.05, 1.0], rtol=6e-3)
    np.testing.assert_allclose(tail, [1, 1, 1] if headless else [0.125, 0.05, 0.0], rtol=3e-3)
    assert store.text(0).supervised_bytes == "Grüße 🙂".encode()
    assert store[store.row(1)[0]].byte_starts.tolist() == [2, 3]
    assert (records.entry_ids is None) == (name == "values-only")
    if records.entry_ids is not None:
        assert records.entry_ids.tolist() == ([] if headless else [7, 3, 900, 1, 2, 0])
    if name in ("temperatures", "compact"):
        assert records.lognorm is not None
        assert records.lognorm.tolist() == [[0.0, 0.0], [0.25, 0.125], [0.5, 0.25]]
    if name in ("draws", "gaps", "compact", "no-entries"):
        assert records.sample_ids is not None
        assert records.sample_ids.tolist() == [100, 100, 200]
    if name == "parts":
        assert store.row(0) == [0, 1]
        assert store.text(1).supervised_start == 12


@pytest.mark.parametrize("name", VARIANTS)
def test_today_writes_what_v1_wrote(tmp_path: Path, name: str) -> None:
    old, new = GOLDEN / f"v1-{name}", tmp_path / "new"
    golden_stores.write(new, name)
    for file in ("store.json", "tokenizer/tokenizer.json"):
        assert (new / file).read_bytes() == (old / file).read_bytes()
    before, now = Archive(old / SHARD), Archive(new / SHARD)
    assert before.names == now.names
    for member in before.names:
        if member == "zarr.json":
            assert_same_group(bytes(before[member]), bytes(now[member]))
        elif member != "rows.parquet":
            assert bytes(before[member]) == bytes(now[member]), member
    if same_writer(old):
        assert bytes(before["rows.parquet"]) == bytes(now["rows.parquet"])
        table = pq.read_table(new / "index.parquet")
        assert table.schema.equals(pq.read_table(old / "index.parquet").schema)
    assert open_store(old).digest == open_store(new).digest


def same_writer(store: Path) -> bool:
    import pyarrow

    return f"version {pyarrow.__version__}" in pq.read_metadata(store / "index.parquet").created_by


def assert_same_group(before: bytes, now: bytes) -> None:
    a, b = (json.loads(data)["attributes"]["logitstore"] for data in (before, now))
    assert a.pop("fidelity") == pytest.approx(b.pop("fidelity"), rel=1e-5, abs=1e-9)
    assert a == b
