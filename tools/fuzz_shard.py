"""Feed the shard reader hostile bytes for a while; anything but a clean answer is a bug.

    python tools/fuzz_shard.py --seconds 600 [--seed 0] [--codec compact] [--findings FOLDER]

With atheris installed (`pip install atheris`), coverage chooses what to mutate; without it, the
same target runs on seeded random mutations. A shard is mutated below its checksums: after each
mutation the CRC-32s, the chunk checksums and the archive's digest are made right again, so that the
parsers behind them are reached. The oracle: opening and reading everything either works or raises a
LogitStoreError, and never takes more than 100 MB.

Prints the number of executions. Findings are written to --findings, one file each.
"""

import argparse
import importlib
import os
import struct
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["logitstore"]):
        importlib.import_module("logitstore.store")
import google_crc32c
import numpy as np
import pyarrow

from logitstore.errors import LogitStoreError
from logitstore.format.spec import CODECS, StoreHeader
from logitstore.format.zip_archive import Archive, pack
from logitstore.reading.shard import Shard
from logitstore.storage.paths import store_path
from logitstore.testing import stores

LIMIT_BYTES = 100 * 1024 * 1024


class Target:
    """A small shard with every optional block, and a reader of its mutants."""

    def __init__(self, folder: Path, codec: str) -> None:
        of = stores.spec(chunks=(8, 16), temperatures=(2.0,), draws=3, codec=codec)
        stores.write(folder / "s", of)
        header = StoreHeader.read(folder / "s")
        self.spec, self.plan = header.spec, header.plan
        archive = Archive(store_path(folder / "s" / "shards" / "00001.zarr.zip"))
        self.members = {name: bytes(archive[name]) for name in archive.names}
        self.names = sorted(self.members)
        self.path = folder / "mutant.zarr.zip"
        self.whole = b"".join(map(bytes, pack(self.members)))
        self.executions = self.refused = 0

    def mutant(self, data: bytes) -> bytes:
        """Return an archive with the edits that `data` encodes: of members, or of the archive."""
        if len(data) < 4:
            return data
        kind, data = data[0] % 8, data[1:]
        if kind == 0:
            return edited(self.whole, data)
        members = dict(self.members)
        name = self.names[data[0] % len(self.names)]
        changed = edited(members[name], data[1:])
        if kind in (1, 2, 3) and "/c/" in name:
            changed = with_checksums(members[name], changed)
        members[name] = changed
        if kind == 7:
            members["x" * (data[0] % 5)] = data
        return b"".join(map(bytes, pack(members)))

    def __call__(self, data: bytes) -> None:
        """Read a mutant whole.

        Raises:
            Exception: A finding.
        """
        self.executions += 1
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(self.mutant(data))
        try:
            shard = Shard(store_path(self.path), self.spec, self.plan, 1)
            shard.sequence_rows()
            for i in range(len(shard)):
                for read in (shard.text, shard.records):
                    try:
                        read(i)
                    except LogitStoreError:
                        self.refused += 1
        except LogitStoreError:
            self.refused += 1


def edited(original: bytes, data: bytes) -> bytes:
    """Apply the edits in `data`, each four bytes: a place, a kind of edit and a value."""
    out = bytearray(original)
    for i in range(0, min(len(data), 64) - 3, 4):
        place, what, value = data[i] | data[i + 1] << 8, data[i + 2], data[i + 3]
        at = place % max(len(out), 1)
        if what % 4 == 0 and out:
            out[at] = value
        elif what % 4 == 1 and out:
            out[at] ^= 1 << value % 8
        elif what % 4 == 2:
            out[at:at] = data[i : i + value % 32]
        else:
            del out[at : at + value % 32]
    return bytes(out)


def with_checksums(original: bytes, changed: bytes) -> bytes:
    """Correct the chunk and index checksums of a data member, if its layout is still valid."""
    if len(changed) != len(original):
        return changed
    out = bytearray(changed)
    count = next(c for c in range(1, 9999) if index_is_at(original, c))
    start = len(original) - 4 - 16 * count
    for i in range(count):
        offset, size = struct.unpack_from("<QQ", original, start + 16 * i)
        put_checksum(out, offset, offset + size - 4)
    put_checksum(out, start, len(out) - 4)
    return bytes(out)


def index_is_at(member: bytes, count: int) -> bool:
    start = len(member) - 4 - 16 * count
    return bool(google_crc32c.value(member[start:-4]) == int.from_bytes(member[-4:], "little"))


def put_checksum(out: bytearray, start: int, stop: int) -> None:
    out[stop : stop + 4] = google_crc32c.value(bytes(out[start:stop])).to_bytes(4, "little")


class Run:
    """A fuzzing run that counts executions, keeps findings, watches memory and stops in time."""

    def __init__(self, target: Target, seconds: float, findings: Path) -> None:
        self.target, self.stop_at, self.findings = target, time.monotonic() + seconds, findings
        self.found: dict[str, bytes] = {}
        self.most = 0
        target(b"\0\0\0\0")  # imports and caches, before memory is measured

    def __call__(self, data: bytes) -> None:
        idle = begin_measuring()
        try:
            self.target(data)
        except Exception as e:
            self._keep(f"{type(e).__name__}: {e}"[:120], data)
        over = resident_bytes("VmHWM") - idle
        self.most = max(self.most, over)
        if over > LIMIT_BYTES:
            self._keep(f"peak memory {over // 2**20} MiB over idle", data)
        if time.monotonic() > self.stop_at:
            self.report()
            sys.stdout.flush()
            # atheris has no way to stop from within.
            os._exit(1 if self.found else 0)

    def _keep(self, what: str, data: bytes) -> None:
        if what not in self.found:
            self.found[what] = data
            self.findings.mkdir(parents=True, exist_ok=True)
            (self.findings / f"{len(self.found):03d}.bin").write_bytes(data)
            print(f"finding {len(self.found)}: {what}", file=sys.stderr, flush=True)

    def report(self) -> None:
        how = "coverage-guided (atheris)" if atheris is not None else "seeded mutations"
        print(
            f"{self.target.executions:,} executions, {how}: {self.target.refused:,} refusals, "
            f"{len(self.found)} findings, peak {self.most / 1e6:.0f} MB over idle"
        )


def begin_measuring() -> int:
    """Reset the peak of resident memory (Linux); return the resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def resident_bytes(name: str) -> int:
    """Return a number of bytes from a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", choices=CODECS, default="portable")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    args = parser.parse_args()
    pyarrow.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Target(Path(folder), args.codec), args.seconds, args.findings)
        if atheris is not None:
            options = [sys.argv[0], f"-seed={args.seed + 1}", "-max_len=80", "-verbosity=0"]
            atheris.Setup([*options, "-rss_limit_mb=0", f"-artifact_prefix={folder}/"], run)
            atheris.Fuzz()
        rng = np.random.default_rng(args.seed)
        while True:
            run(rng.bytes(int(rng.integers(4, 80))))


if __name__ == "__main__":
    main()
