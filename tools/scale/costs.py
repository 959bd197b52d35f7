"""Measure what a shard, a byte and a token cost: the constants of `arithmetic.py`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from logitstore.checking.verify import verify_store
from logitstore.format.plan import Plan
from logitstore.format.spec import StoreHeader
from logitstore.reading.shard_ends import lines_of
from logitstore.records import Segment, SequenceText
from logitstore.rows.dataset import load_rows
from logitstore.rows.survey import survey
from logitstore.storage.paths import store_path
from logitstore.store import open_store
from logitstore.testing import stores
from logitstore.writing.encode import encode_records
from logitstore.writing.writer import StoreWriter


def costs(folder: Path, *, quick: bool) -> dict[str, float]:
    """Measure them, each on one core."""
    return {
        **_of_shards(folder / "small", 20 if quick else 300),
        **_of_bytes(folder / "large", 60 if quick else 2500, 2 if quick else 6),
        **_of_rows(folder / "data", 200 if quick else 40_000),
    }


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds of a processor that one call takes."""
    began = time.process_time()
    call()
    return time.process_time() - began


def _of_shards(path: Path, shards: int) -> dict[str, float]:
    """Measure what is done to a shard, however small it is: to seal it, to count its sequences."""
    of = stores.spec(vocab_size=50, top_k=3)
    stores.write(path, of, tuple(range(shards + 1)))
    header = StoreHeader.read(path)
    seal_s = seconds_of(lambda: lines_of(store_path(path), header, range(shards)))
    store = open_store(path)
    count_s = seconds_of(lambda: store.token_counts)
    return {"seal_ms_a_shard": 1e3 * seal_s / shards, "count_ms_a_shard": 1e3 * count_s / shards}


def _of_bytes(path: Path, tokens: int, shards: int) -> dict[str, float]:
    """Measure what is done to every byte of a shard: to verify it, to read its records."""
    of, rng = stores.spec(vocab_size=5000, top_k=64), np.random.default_rng(0)
    pieces = ["word "] * tokens
    encoded = encode_records(stores.raw_records(of, pieces, rng), of)
    plan = Plan("d" * 64, np.arange(0, 4 * shards + 1, 4))
    writer = StoreWriter(path, of, plan, stores.TOKENIZER_FILES)
    segments = (Segment("".join(pieces), True),)
    for index in range(shards):
        rows = range(*plan.shard_rows(index))
        lines = [SequenceText(row, 0, "ok", segments, 0, None) for row in rows]
        writer.write_shard(index, [(line, encoded) for line in lines])
    writer.seal()
    size = sum(file.stat().st_size for file in (path / "shards").iterdir())
    store = open_store(path)
    records = int(store.token_counts.sum())
    read_s = seconds_of(lambda: [store[i] for i in range(len(store))])
    return {
        "verify_bytes_a_second": size / seconds_of(lambda: verify_store(path)),
        "verify_deep_bytes_a_second": size / seconds_of(lambda: verify_store(path, deep=True)),
        "read_tokens_a_second": records / read_s,
    }


def _of_rows(path: Path, rows: int) -> dict[str, float]:
    """Measure what is done to every byte of the dataset before a capture: its digest."""
    text = "The teacher reads page 7. " * 40
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": [f"{i} {text}" for i in range(rows)]}).save_to_disk(path)
    loaded = load_rows(str(path))
    return {"hash_bytes_a_second": rows * len(text) / seconds_of(lambda: survey(loaded))}
