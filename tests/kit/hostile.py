"""Tools of an attacker: stores whose every digest and checksum is right, around a lie.

Run as a program, it is the victim: `python -m tests.kit.hostile STORE…` reads each store in a
process of its own and prints, as JSON, how that ended and how much memory it took over idle.
"""

import hashlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.checking.verify import verify_store
from logitstore.format.canonical_json import canonical_json
from logitstore.format.index import SCHEMA, encode_index
from logitstore.format.seal import seal_bytes
from logitstore.format.zip_archive import Archive, pack
from logitstore.info import facts
from logitstore.storage.files import file_sha256
from logitstore.store import open_store
from tests.kit.paths import ROOT

END_BYTES = 22 + 64
SHARD = "shards/00001.zarr.zip"
TIMEOUT_S = 20


def members_of(store: Path, shard: str = SHARD) -> dict[str, bytes]:
    """Members of the shard under attack, or of another."""
    archive = Archive(store / shard)
    return {name: bytes(archive[name]) for name in archive.names}


def put_members(store: Path, members: Mapping[str, bytes], shard: str = SHARD) -> None:
    put_shard(store, b"".join(map(bytes, pack(members))), shard)


def put_shard(store: Path, data: bytes, shard: str = SHARD) -> None:
    """Replace a shard; archive comment, index and seal are made to agree with it."""
    digest = hashlib.sha256(data[:-END_BYTES]).hexdigest()
    (store / shard).write_bytes(data[:-64] + digest.encode())
    lines = pq.read_table(store / "index.parquet").to_pylist()
    number = int(Path(shard).name.split(".")[0])
    lines[number] |= {"sha256": digest, "file_bytes": len(data)}
    put_index(store, encode_index(lines))


def put_index(store: Path, data: bytes) -> None:
    (store / "index.parquet").write_bytes(data)
    reseal(store)


def reseal(store: Path) -> None:
    """A seal that fits the files as they are."""
    names = ["store.json", "index.parquet"]
    names += [f"tokenizer/{p.name}" for p in (store / "tokenizer").iterdir()]
    digests = {name: file_sha256(store / name) for name in sorted(names)}
    (store / "DONE").write_bytes(seal_bytes(digests))


def edit_spec(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change store.json; its own digests, those in the shards and the seal are made to agree."""
    body = json.loads((store / "store.json").read_bytes())
    change(body)
    for part in ("content", "plan"):
        body[f"{part}_sha256"] = hashlib.sha256(canonical_json(body[part])).hexdigest()
    (store / "store.json").write_bytes(canonical_json(body))
    reseal(store)
    for path in sorted((store / "shards").iterdir()):
        shard = f"shards/{path.name}"
        members = members_of(store, shard)
        group = json.loads(members["zarr.json"])
        about = group["attributes"]["logitstore"]
        about |= {name: body[name] for name in ("content_sha256", "plan_sha256")}
        put_members(store, members | {"zarr.json": canonical_json(group)}, shard)


def edit_group(store: Path, change: Callable[[dict[str, Any]], None], shard: str = SHARD) -> None:
    """Change what the shard says of itself."""
    members = members_of(store, shard)
    group = json.loads(members["zarr.json"])
    change(group["attributes"]["logitstore"])
    put_members(store, members | {"zarr.json": canonical_json(group)}, shard)


def data_member(pieces: list[bytes]) -> bytes:
    """A data member from blosc buffers, with all of its checksums."""
    chunks = [p + crc(p) for p in pieces]
    stops = np.cumsum([len(c) for c in chunks])
    index = b"".join(
        struct.pack("<QQ", int(stop) - len(c), len(c))
        for c, stop in zip(chunks, stops, strict=True)
    )
    return b"".join(chunks) + index + crc(index)


def crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    settings = {"compression": "zstd", "write_statistics": False, "row_group_size": 64}
    pq.write_table(table, sink, **settings | {"write_page_checksum": True} | options)
    return bytes(memoryview(sink.getvalue()))


def index_table(store: Path, **columns: list[Any]) -> pa.Table:
    lines = pq.read_table(store / "index.parquet").to_pydict()
    return pa.table(lines | columns, schema=SCHEMA)


def outcomes(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """How reading and verifying each store ended, by folder name; read by processes apart."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-m", "tests.kit.hostile", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return {Path(r["store"]).name: r for r in map(json.loads, done.stdout.splitlines())}


def _read(path: Path) -> None:
    store = open_store(path)
    facts(store)
    for i in range(len(store)):
        store.text(i)
        store[i]
    assert len(store.sequence_rows) == len(store.token_counts)


def _verify(path: Path) -> None:
    damaged = verify_store(path, deep=True).damaged
    if damaged:
        raise ValueError(damaged[0].reason)  # verify's own way of refusing


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _attempt(path: Path, use: Callable[[Path], None]) -> dict[str, Any]:
    """In a child of its own, so that one attack's memory is not counted for the next."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        idle, ended = _peak_bytes(), {"error": None, "kinds": [], "says": ""}
        signal.alarm(TIMEOUT_S)
        try:
            use(path)
        except BaseException as e:
            kinds = [k.__name__ for k in type(e).__mro__]
            ended = {"error": type(e).__name__, "kinds": kinds, "says": str(e)[:500]}
        os.write(writable, json.dumps(ended | {"peak_bytes": _peak_bytes() - idle}).encode())
        os._exit(0)
    os.close(writable)
    status = os.waitpid(child, 0)[1]
    said = os.read(readable, 65536)
    os.close(readable)
    if not said:
        return {
            "error": f"killed by signal {status & 127}",
            "kinds": [],
            "says": "",
            "peak_bytes": 0,
        }
    return dict(json.loads(said))


def main() -> None:
    pa.set_cpu_count(1)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    _attempt_warm = Path(sys.argv[1])
    _read(_attempt_warm)  # a whole store first: imports and caches are not the attacks' doing
    _verify(_attempt_warm)
    for path in map(Path, sys.argv[2:]):
        found = {"store": str(path), "read": _attempt(path, _read)}
        print(json.dumps(found | {"verify": _attempt(path, _verify)}), flush=True)


if __name__ == "__main__":
    main()
