"""Compare this format with five others: the same records, and what happens when a bit flips.

    python tools/why_format.py [--json] [--quick]

The same quantised records (u16 codes, u32 ids, ragged) are written as a shard of ours, as Parquet,
Arrow IPC, plain zarr v3, HDF5 (if h5py is installed) and a tar of one .npy a field and sequence,
each compressed as its users would. Then, for each:

* flips: one random bit of the file, everything read: raised, silently other data, or the same data;
* missing: a chunk (or its nearest thing) is taken away: what reading says;
* read: median time to read one random sequence of an open file, from the page cache;
* bytes a token of the whole file or folder.
"""

import argparse
import io
import json
import platform
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

try:
    import h5py
except ImportError:
    h5py = None

from logitstore.format.spec import Plan
from logitstore.format.zip_archive import pack
from logitstore.reading.shard import Shard
from logitstore.records import Segment, SequenceText
from logitstore.storage.paths import store_path
from logitstore.testing import stores
from logitstore.writing.encode import RawRecords, encode_records
from logitstore.writing.shard_builder import build_shard

FIELDS = ("token_ids", "entry_count", "tail_logmass", "entry_logprobs", "entry_ids")
VOCABULARY, TOP_K, GROUP = 50_000, 64, 64
Sequence = dict[str, np.ndarray]


def records(sequences: int, tokens: int) -> tuple[Any, list[Any]]:
    """Make a spec and encoded sequences, with ids distributed like the words of a text."""
    of, rng = stores.spec(vocab_size=VOCABULARY, top_k=TOP_K), np.random.default_rng(0)
    prior = -1.1 * np.log(np.arange(1, VOCABULARY + 1))
    found = []
    for _ in range(sequences):
        logits = prior + rng.normal(size=(tokens, VOCABULARY)) * 2.5
        logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        top = np.argpartition(-logp, TOP_K, axis=1)[:, :TOP_K]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(logp, top, 1), 1), 1)
        head = np.take_along_axis(logp, top, 1)
        raw = RawRecords(
            token_ids=top[:, 0],
            byte_starts=np.arange(tokens) * 4,
            byte_lengths=np.full(tokens, 4),
            token_logprob=head[:, 0],
            entry_logprobs=head.astype(np.float32),
            entry_ids=top,
            entry_count=np.full(tokens, TOP_K),
            tail_logmass=np.log1p(-np.exp(head).sum(1)).astype(np.float32),
            entropy=-(np.exp(logp) * logp).sum(1),
        )
        found.append(encode_records(raw, of))
    return of, found


def plain(encoded: Any) -> Sequence:
    """Return the fields that are written in every format here."""
    return {n: encoded.fields[n] for n in FIELDS}


class Ours:
    name = "logitstore shard"

    def __init__(self, of: Any, encoded: list[Any]) -> None:
        self.of, self.plan = of, Plan("d" * 64, np.array([0, len(encoded)]))
        lines = [SequenceText(i, 0, "ok", (Segment("word" * len(e), True),)) for i, e in
                 enumerate(encoded)]  # fmt: skip
        members = build_shard(of, self.plan, 0, list(zip(lines, encoded, strict=True)))
        self.data = b"".join(bytes(p) for p in pack(members))

    def write(self, path: Path) -> None:
        path.write_bytes(self.data)

    def open(self, path: Path, keep: int = 0) -> Callable[[int], Sequence]:
        shard = Shard(store_path(path), self.of, self.plan, 0)

        def read(i: int) -> Sequence:
            r = shard.records(i)
            return {n: getattr(r, n) for n in FIELDS}

        return read

    def lose(self, path: Path) -> None:
        members = Shard(store_path(path), self.of, self.plan, 0).archive
        kept = {n: bytes(members[n]) for n in members.names if n != "entry_ids/c/0"}
        path.unlink()
        path.write_bytes(b"".join(bytes(p) for p in pack(kept)))


class Columns:
    """A table with one row for each sequence and one list column for each field."""

    def __init__(self, of: Any, encoded: list[Any]) -> None:
        self.rows = [plain(e) for e in encoded]
        self.table = pa.table({n: [r[n] for r in self.rows] for n in FIELDS})

    def lose(self, path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 3] + data[len(data) // 2 :])


class Parquet(Columns):
    name = "Parquet"

    def write(self, path: Path) -> None:
        pq.write_table(self.table, path, compression="zstd", row_group_size=GROUP)

    def open(self, path: Path, keep: int = 0) -> Callable[[int], Sequence]:
        file = pq.ParquetFile(path)
        group = lru_cache(keep)(file.read_row_group)

        def read(i: int) -> Sequence:
            row = group(i // GROUP).slice(i % GROUP, 1)
            return {n: row[n][0].values.to_numpy() for n in FIELDS}

        return read


class ArrowIpc(Columns):
    name = "Arrow IPC"

    def write(self, path: Path) -> None:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(path, self.table.schema, options=options) as sink:
            sink.write_table(self.table, max_chunksize=GROUP)

    def open(self, path: Path, keep: int = 0) -> Callable[[int], Sequence]:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        group = lru_cache(keep)(file.get_batch)

        def read(i: int) -> Sequence:
            batch = group(i // GROUP)
            return {n: batch[n][i % GROUP].values.to_numpy() for n in FIELDS}

        return read


class Flat:
    """The fields as flat arrays with offsets, as array stores keep them."""

    def __init__(self, of: Any, encoded: list[Any]) -> None:
        rows = [plain(e) for e in encoded]
        self.arrays = {n: np.concatenate([r[n] for r in rows]) for n in FIELDS}
        self.offsets = {
            n: np.concatenate([[0], np.cumsum([len(r[n]) for r in rows])]) for n in FIELDS
        }

    def reader(self, arrays: Any) -> Callable[[int], Sequence]:
        def read(i: int) -> Sequence:
            return {n: arrays[n][self.offsets[n][i] : self.offsets[n][i + 1]] for n in FIELDS}

        return read


class PlainZarr(Flat):
    """A zarr folder of chunks, kept in a tar here, so that a flip can hit any of its bytes."""

    name = "plain zarr"

    def write(self, path: Path) -> None:
        folder = path.with_name("group")
        shutil.rmtree(folder, ignore_errors=True)
        group = zarr.open_group(folder, mode="w")
        for name, values in self.arrays.items():
            group.create_array(name, data=values, chunks=(min(len(values), 32768),))
        with tarfile.open(path, "w") as tar:
            tar.add(folder, "group")

    def open(self, path: Path, keep: int = 0) -> Callable[[int], Sequence]:
        folder = path.with_name(f"{path.name}-unpacked")
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")
        group = zarr.open_group(folder / "group", mode="r")
        return self.reader({n: group[n] for n in FIELDS})

    def lose(self, path: Path) -> None:
        self.write(path)
        folder = path.with_name("group")
        (folder / "entry_ids" / "c" / "0").unlink()
        with tarfile.open(path, "w") as tar:
            tar.add(folder, "group")

    def size_bytes(self, path: Path) -> int:
        self.write(path)
        folder = path.with_name("group")
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


class Hdf5(Flat):
    name = "HDF5"

    def write(self, path: Path) -> None:
        with h5py.File(path, "w") as f:
            for name, values in self.arrays.items():
                chunks = (min(len(values), 32768),)
                f.create_dataset(name, data=values, chunks=chunks, compression="gzip", shuffle=True)

    def open(self, path: Path, keep: int = 0) -> Callable[[int], Sequence]:
        file = h5py.File(path, "r")
        return self.reader({n: file[n] for n in FIELDS})

    def lose(self, path: Path) -> None:
        with h5py.File(path, "r+") as f:  # as it is after a writer died before its last chunk
            del f["entry_ids"]
            values = self.arrays["entry_ids"]
            chunks = (min(len(values), 32768),)
            f.create_dataset("entry_ids", values.shape, values.dtype, chunks=chunks)


class TarOfTensors:
    name = "tar of tensors"

    def __init__(self, of: Any, encoded: list[Any]) -> None:
        self.rows = [plain(e) for e in encoded]

    def write(self, path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            for i, row in enumerate(self.rows):
                for name, values in row.items():
                    out = io.BytesIO()
                    np.save(out, values)
                    info = tarfile.TarInfo(f"{i:06d}.{name}.npy")
                    info.size = out.tell()
                    out.seek(0)
                    tar.addfile(info, out)

    def open(self, path: Path, keep: int = 0) -> Callable[[int], Sequence]:
        tar = tarfile.open(path)  # noqa: SIM115
        members = {m.name: m for m in tar.getmembers()}

        def read(i: int) -> Sequence:
            found = {}
            for name in FIELDS:
                file = tar.extractfile(members[f"{i:06d}.{name}.npy"])
                assert file is not None
                found[name] = np.load(io.BytesIO(file.read()), allow_pickle=False)
            return found

        return read

    def lose(self, path: Path) -> None:
        kept = self.rows
        self.rows = kept[:1]
        self.write(path)
        self.rows = kept


def same(a: list[Sequence], b: list[Sequence]) -> bool:
    return all(np.array_equal(x[n], y[n]) for x, y in zip(a, b, strict=True) for n in FIELDS)


def outcome(format_: Any, path: Path, count: int, wanted: list[Sequence]) -> str:
    """Read everything; return whether it raised, was the same, or was silently other data."""
    try:
        read = format_.open(path, keep=1)  # a group is decoded once, as everything is read
        return "same" if same([read(i) for i in range(count)], wanted) else "silent"
    except Exception:
        return "raised"


def measure(format_: Any, folder: Path, count: int, flips: int) -> dict[str, Any]:
    path = folder / "file"
    path.unlink(missing_ok=True)
    format_.write(path)
    good, read = path.read_bytes(), format_.open(path)
    wanted = [read(i) for i in range(count)]
    rng = np.random.default_rng(1)
    times = []
    for i in rng.integers(count, size=min(200, 4 * count)):
        began = time.perf_counter()
        read(int(i))
        times.append(time.perf_counter() - began)
    found = {"raised": 0, "silent": 0, "same": 0}
    for number in range(flips):
        data = bytearray(good)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        hurt = folder / f"flip-{number}"
        hurt.write_bytes(data)
        found[outcome(format_, hurt, count, wanted)] += 1
        hurt.unlink()
    lost = folder / "lost"
    lost.write_bytes(good)
    format_.lose(lost)
    missing = outcome(format_, lost, count, wanted)
    lost.unlink()
    size = format_.size_bytes(path) if hasattr(format_, "size_bytes") else len(good)
    return {
        "format": format_.name,
        "flips": found,
        "missing_chunk": "zeros or other data, silently" if missing == "silent" else missing,
        "read_sequence_us": float(np.median(times) * 1e6),
        "bytes_per_token": size / sum(len(w["token_ids"]) for w in wanted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    pa.set_cpu_count(1)
    sequences, tokens, flips = (8, 8, 5) if args.quick else (128, 64, 300)
    of, encoded = records(sequences, tokens)
    kinds: list[Any] = [Ours, Parquet, ArrowIpc, PlainZarr, TarOfTensors]
    kinds += [Hdf5] if h5py is not None else []
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(k(of, encoded), Path(folder), sequences, flips) for k in kinds]
    packages = ["pyarrow", "zarr", "numcodecs", *(["h5py"] if h5py is not None else [])]
    about = {
        "versions": {p: version(p) for p in packages} | {"python": platform.python_version()},
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "records": sequences * tokens,
        "entries_per_record": TOP_K,
    }
    if args.json:
        print(json.dumps({"about": about, "formats": rows}))
        return
    print(json.dumps(about))
    print(f"{'format':<18}{'raised':>7}{'silent':>7}{'same':>6}{'read us':>9}{'B/token':>9}  lost")
    for r in rows:
        f = r["flips"]
        print(
            f"{r['format']:<18}{f['raised']:>7}{f['silent']:>7}{f['same']:>6}"
            f"{r['read_sequence_us']:>9.0f}{r['bytes_per_token']:>9.1f}  {r['missing_chunk']}"
        )


if __name__ == "__main__":
    main()
