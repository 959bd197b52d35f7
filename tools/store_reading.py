"""Measure how fast a store is read, beside bare decoding, zarr and `datasets`, in one process.

Times are CPU times of all threads, so that other programs on the machine disturb ratios little.
Contenders take turns, and figures are medians. Used by `tools/bench_store.py`.
"""

import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr

from logitstore.format.chunk_codecs import CODINGS, one_thread
from logitstore.format.spec import Plan
from logitstore.store import LogitStore, open_store
from logitstore.writing.encode import encode_records
from logitstore.writing.writer import StoreWriter
from tools.store_sizes import as_sequence, raw_records, spec_of
from tools.synthetic_teacher import Arrays

Read = Callable[[int], Any]

_TURN = 50
_WARM = 10


def write_store(folder: Path, made: Arrays, codec: str, shards: int) -> LogitStore:
    """Write a store with sequences of 400 to 600 tokens (fewer if there are few), shuffled."""
    spec = spec_of(int(made["top_ids"].max()) + 1, codec)
    spec = replace(spec, tokenizer=spec.tokenizer | {"size": spec.vocab_size})
    encoded = encode_records(raw_records(made, spec), spec)
    rng = np.random.default_rng(0)
    longest = min(600, len(encoded) // 4)
    lengths: list[int] = []
    while sum(lengths) + longest < len(encoded):
        lengths.append(int(rng.integers(longest * 2 // 3, longest)))
    parts = encoded.split([*lengths, len(encoded) - sum(lengths)])
    cuts = tuple(len(parts) * i for i in range(shards + 1))
    writer = StoreWriter(folder, spec, Plan("0" * 64, np.array(cuts)), {})
    for index in range(shards):
        order = rng.permutation(len(parts))
        writer.write_shard(
            index, [as_sequence(parts[j], cuts[index] + i) for i, j in enumerate(order)]
        )
    writer.seal()
    return open_store(folder)


def bare(store: LogitStore) -> Read:
    """Decode the chunks that hold a sequence's entries, already in memory."""

    def read(i: int) -> float:
        index, place = store.locate(i)
        shard = store.shard(index)
        chunks = [c for name in ("entry_ids", "entry_logprobs") for c in shard.chunks(name, place)]
        into = [np.empty(chunk.shape, chunk.dtype) for chunk in chunks]
        with one_thread():
            began = time.process_time()
            for chunk, out in zip(chunks, into, strict=True):
                CODINGS[chunk.coding].decode_into(chunk.payload, out)
            return time.process_time() - began

    return read


def through_zarr(store: LogitStore, folder: Path) -> Read:
    """Read the stored codes of the same arrays by zarr, from folders, without decoding them."""
    names = ("entry_ids", "entry_logprobs", "entry_count", "tail_logmass")
    opened: list[list[Any]] = []
    offsets: list[tuple[Any, Any]] = []
    first = [0]
    assert isinstance(store.path, Path)
    for path in sorted((store.path / "shards").iterdir()):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder / path.name)
        group: Any = zarr.open_group(zarr.storage.LocalStore(folder / path.name), mode="r")
        opened.append([group[name] for name in names])
        offsets.append((group["sequence_entries"][:], group["sequence_records"][:]))
        first.append(first[-1] + len(offsets[-1][0]) - 1)

    def read(i: int) -> Any:
        shard = int(np.searchsorted(first, i, side="right")) - 1
        entries, records = offsets[shard]
        place = i - first[shard]
        e, r = slice(*entries[place : place + 2]), slice(*records[place : place + 2])
        ids, logprobs, count, tail = opened[shard]
        return ids[e], logprobs[e], count[r], tail[r]

    return read


def through_datasets(store: LogitStore, folder: Path) -> dict[str, Read]:
    """Read the same entries by `datasets`, from nested lists in Parquet."""
    folder.mkdir()
    path = folder / "entries.parquet"
    writer = None
    for i in range(len(store)):
        entries = store.entries(i)
        assert entries.entry_ids is not None
        cuts = np.concatenate([[0], np.cumsum(entries.entry_count)]).astype(np.int32)
        columns = {"ids": entries.entry_ids, "logprobs": entries.entry_logprobs.astype(np.float16)}
        rows = {n: pa.ListArray.from_arrays(cuts, pa.array(v)) for n, v in columns.items()}
        table = pa.table({n: pa.ListArray.from_arrays([0, len(v)], v) for n, v in rows.items()})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    datasets.disable_progress_bars()
    found = datasets.Dataset.from_parquet(str(path), cache_dir=str(folder / "cache"))
    in_numpy = found.with_format("numpy")
    return {"lists": lambda i: found[i], "numpy": lambda i: in_numpy[i]}


def medians(readers: dict[str, Read], rows: list[int]) -> dict[str, float]:
    """Return the median seconds of each reader, in turns of some rows; ``bare`` times itself.

    The first reads of a turn are not counted: they bring the reader's code into the cache.
    """
    times: dict[str, list[float]] = {name: [] for name in readers}
    for start in range(0, len(rows), _TURN):
        for name, read in readers.items():
            for place, i in enumerate([*rows[-_WARM:], *rows[start : start + _TURN]]):
                began = time.process_time()
                own = read(i)
                spent = time.process_time() - began
                if place >= _WARM:
                    times[name].append(own if name == "bare" else spent)
    return {name: float(np.median(t)) for name, t in times.items()}


def many(store: LogitStore, batches: list[list[int]]) -> dict[str, float]:
    """Return seconds a sequence, read one by one and in batches; wall time, because of threads."""
    one = {"single": lambda rows: [store[i] for i in rows], "together": store.read_many}
    times: dict[str, list[float]] = {name: [] for name in one}
    for rows in batches:
        for name, read in one.items():
            began = time.perf_counter()
            read(rows)
            times[name].append((time.perf_counter() - began) / len(rows))
    return {name: float(np.median(t)) for name, t in times.items()}


class _Batches(torch.utils.data.Dataset[int]):
    """A dataset whose items are batches, read in a worker; it returns their number of tokens."""

    def __init__(self, path: Path, batches: list[list[int]]) -> None:
        self.store, self.batches = open_store(path), batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> int:
        return sum(len(records) for records in self.store.read_many(self.batches[i]))


def loaders(path: Path, batches: list[list[int]], repeats: int) -> dict[int, float]:
    """Return tokens per second of wall time through data loaders with one and two workers."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, found in rates.items():
            loader = torch.utils.data.DataLoader(
                _Batches(path, batches), batch_size=None, num_workers=workers
            )
            arriving = iter(loader)
            for _ in range(2 * workers):  # until workers have started and opened the store
                next(arriving)
            began = time.perf_counter()
            tokens = sum(int(n) for n in arriving)
            found.append(tokens / (time.perf_counter() - began))
    return {workers: float(np.median(found)) for workers, found in rates.items()}
