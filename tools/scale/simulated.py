"""Make a store of any number of shards by its plan, index and seal; the shards are empty files.

A finished store of up to `MOST_LISTED` shards is listed when it is opened, so those have files.
"""

import secrets
from pathlib import Path

import numpy as np
import pyarrow as pa

from logitstore.format.index import COUNTS, SCHEMA, Lines, encode_index
from logitstore.format.plan import Plan
from logitstore.format.seal import seal_bytes, sealed_names
from logitstore.format.spec import StoreHeader, shard_name
from logitstore.reading.shard_table import MOST_LISTED
from logitstore.storage.files import file_sha256
from logitstore.testing import stores

ROWS_A_SHARD = 435
_RECORDS_A_ROW, _TEXT_BYTES, _SHARD_BYTES = 1000, 1_830_000, 76_000_000
_OK = f'{{"ok": {ROWS_A_SHARD}}}'


def make_store(path: Path, shards: int) -> Path:
    """Make a finished store of these many shards, of about a million tokens each."""
    of = stores.spec()
    cuts = np.arange(0, (shards + 1) * ROWS_A_SHARD, ROWS_A_SHARD, dtype=np.int64)
    header = StoreHeader(of, Plan("d" * 64, cuts), {})
    for folder in ("shards", "tokenizer"):
        (path / folder).mkdir(parents=True)
    for name, data in stores.TOKENIZER_FILES.items():
        (path / "tokenizer" / name).write_bytes(data)
    if shards <= MOST_LISTED:
        for i in range(shards):
            (path / "shards" / shard_name(i)).touch()
    for name, data in header.plan.files().items():
        (path / name).write_bytes(data)
    (path / "store.json").write_bytes(header.to_bytes())
    (path / "index.parquet").write_bytes(encode_index(_lines(cuts)))
    digests = {name: file_sha256(path / name) for name in sealed_names(of)}
    (path / "DONE").write_bytes(seal_bytes(digests))
    return path


def _lines(cuts: np.ndarray) -> Lines:
    """Make lines with digests and fidelity that are as hard to compress as real ones."""
    shards, rng = len(cuts) - 1, np.random.default_rng(0)
    counts = dict.fromkeys(COUNTS, np.zeros(shards, np.int64))
    counts["sequences"] = np.full(shards, ROWS_A_SHARD)
    for name, mean in (
        ("records", ROWS_A_SHARD * _RECORDS_A_ROW),
        ("entries", 64 * ROWS_A_SHARD * _RECORDS_A_ROW),
        ("supervised_bytes", _TEXT_BYTES),
        ("file_bytes", _SHARD_BYTES),
    ):
        counts[name] = rng.integers(int(0.99 * mean), int(1.01 * mean), shards)
    columns = {
        "shard": np.arange(shards),
        "first_row": cuts[:-1],
        "stop_row": cuts[1:],
        "sha256": _texts(secrets.token_hex(32 * shards), shards),
        "statuses": pa.array([_OK]).take(pa.array(np.zeros(shards, np.int64))),
        **counts,
    }
    for field in SCHEMA:
        if field.name not in columns:
            is_whole = pa.types.is_integer(field.type)
            columns[field.name] = np.zeros(shards, np.int64) if is_whole else rng.random(shards)
    return Lines(pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA))


def _texts(whole: str, count: int) -> pa.Array:
    offsets = np.arange(count + 1, dtype=np.int32) * 64
    return pa.StringArray.from_buffers(
        count, pa.py_buffer(offsets.tobytes()), pa.py_buffer(whole.encode())
    )
