"""Scale: what millions of shards and a billion rows cost whoever opens, shares and orders them.

    python -m tools.bench_scale [--quick] [--json]
    python -m tools.bench_scale --dry-run-1e12        the arithmetic for 10^12 tokens on 64 GPUs

Stores and plans are simulated (`tools/scale/simulated.py`): their files are there, but shards are
empty. Each figure is measured in a process of its own, at several sizes; `grows as n^…` is the
exponent fitted over these, and what is given for a billion rows is a straight line through them.
Seconds are those of a processor.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from logitstore.reading.shard_cache import FOLDER_VARIABLE
from tools.bench_store import lines
from tools.benchmark import goal, surroundings
from tools.scale import arithmetic
from tools.scale.costs import costs
from tools.scale.growth import at_size, exponent, measured
from tools.scale.simulated import make_store

PACKAGES = ("numpy", "pyarrow", "zarr", "datasets", "torch")
MILLION = 10**6
SHARDS, ROWS, CLAIMED = (10**4, 10**5, 10**6, 2_300_000), (10**5, 10**6, 10**7), (300, 1000, 3000)
QUICK = (200, 1000), (1000, 10_000), (20, 60)
BILLION = 10**9

OPEN = """
def both():
    store = open_store(sys.argv[1])
    return store, len(store), store.rows_held
len(open_store(sys.argv[2]))  # loads what any reader loads
(store, *_), opening = took(both)
_, first = took(lambda: store._table.digest_and_size(len(store.shards) // 2))
again = open_store(sys.argv[1])
_, later = took(lambda: again._table.digest_and_size(len(store.shards) // 2))
print(json.dumps({"open": opening, "first of a machine": first, "first of a process": later}))
"""
PLAN = """
from logitstore.writing.plan import make_plan
rows = int(sys.argv[2])
sizes = np.memmap(sys.argv[1], "<i8", mode="r", shape=(rows,))
_, found = took(lambda: make_plan("d" * 64, sizes))
found["bytes"] = max(found["bytes"] - 8 * rows, 1)  # but for what is mapped
print(json.dumps(found))
"""
COUNTS = """
from pathlib import Path
from logitstore.storage.kept_arrays import mapped
(array), found = took(lambda: mapped(Path(sys.argv[1]), int(sys.argv[2])))
_, used = took(lambda: array[:: len(array) // 1000 + 1].sum())
print(json.dumps(found))
"""
ORDER = """
from distill.data.row_order import RowOrder
from itertools import islice
order = RowOrder(int(sys.argv[1]), 0, "d" * 64)
_, found = took(lambda: sum(1 for _ in islice(iter(order), int(sys.argv[2]))))
print(json.dumps(found | {"rows": min(int(sys.argv[1]), int(sys.argv[2]))}))
"""
CLAIM = """
from pathlib import Path
from logitstore.capture.sharing.sharing import ByClaim
from logitstore.storage.folder import LocalPath
folder, count = LocalPath(sys.argv[1]), int(sys.argv[2])
(folder / "shards").mkdir(parents=True)
class Writer:
    done = set()
    def missing(self):
        return [i for i in range(count) if i not in self.done]
    def has_shard(self, index):
        return index in self.done
def take_all():
    shares, writer = ByClaim(folder), Writer()
    for index in shares.shards(writer):
        writer.done.add(index)
        shares.done(index)
    return len(writer.done)
taken, found = took(take_all)
assert taken == count
print(json.dumps(found))
"""


def opening(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Measure opening a store, and then looking up the digest of its first shard."""
    found = []
    small = make_store(folder / "small", 1)
    for shards in sizes:
        path = make_store(folder / f"shards-{shards}", shards)
        found.append({"name": f"{shards:,} shards", **measured(OPEN, path, small)})
    last, largest = found[-1], sizes[-1]
    whole = {"shards": {each.pop("name"): each for each in found}}
    seconds = [each["open"]["seconds"] for each in found]
    return {
        f"seconds, {largest:,} shards": goal(last["open"]["seconds"], at_most=1),
        f"MB over the import, {largest:,} shards": goal(last["open"]["bytes"] / 1e6, at_most=100),
        "seconds grow as n^": exponent(sizes, seconds),
        **whole,
    }


def per_row(sizes: Sequence[int], found: Sequence[Any], *, most_bytes: float) -> dict[str, Any]:
    """Describe what grows with the rows: bytes of memory a row, and seconds at a billion rows."""
    used = [each["bytes"] for each in found]
    seconds = [each["seconds"] for each in found]
    return {
        "bytes of memory a row": goal(used[-1] / sizes[-1], at_most=most_bytes),
        "seconds grow as n^": exponent(sizes, seconds),
        "seconds at 1e9 rows": at_size(sizes, seconds, BILLION),
        "seconds": {f"{n:,}": s for n, s in zip(sizes, seconds, strict=True)},
    }


def of_rows(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Measure the plan, the counts of rows and their order."""
    import numpy as np

    from logitstore.storage.kept_arrays import keep

    plans, counts, orders = [], [], []
    for rows in sizes:
        file = folder / f"rows-{rows}.i64"
        keep(file, [np.random.default_rng(0).integers(1, 9000, rows)])
        plans.append(measured(PLAN, file, rows))
        counts.append(measured(COUNTS, file, rows))
        orders.append(measured(ORDER, rows, sizes[-1]))
    billion = measured(ORDER, BILLION, sizes[-1])
    return {
        "plan, beside the mapped text sizes": per_row(sizes, plans, most_bytes=8),
        "counts of rows, mapped": per_row(sizes, counts, most_bytes=1),
        "order of rows": {
            "MB at 1e9 rows": goal(billion["bytes"] / 1e6, at_most=100),
            "microseconds a row at 1e9 rows": 1e6 * billion["seconds"] / billion["rows"],
            "microseconds a row": {
                f"{rows:,}": 1e6 * each["seconds"] / each["rows"]
                for rows, each in zip(sizes, orders, strict=True)
            },
        },
    }


def claiming(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Measure the taking of every shard by claims: linear, if a shard is O(1) amortised."""
    found = [measured(CLAIM, folder / f"claims-{count}", count) for count in sizes]
    seconds = [each["seconds"] for each in found]
    each_ms = [1e3 * s / n for s, n in zip(seconds, sizes, strict=True)]
    return {
        "seconds for all grow as n^": goal(exponent(sizes, seconds), at_most=1.3),
        "ms a shard": dict(zip(map(str, sizes), each_ms, strict=True)),
    }


def checking(found: dict[str, float]) -> dict[str, Any]:
    """Put what a core does beside what 10^12 tokens need of 64 of them."""
    of = arithmetic.Cluster()
    shards = arithmetic.shards_of(of)
    hours = {
        "hours to seal 10^12 tokens, 64 cores": shards * found["seal_ms_a_shard"] / 3.6e6 / 64,
        "hours to count 10^12 tokens, 64 cores": shards * found["count_ms_a_shard"] / 3.6e6 / 64,
    }
    return {name: goal(value, at_most=0.1) for name, value in hours.items()} | {"one core": found}


def report(*, quick: bool) -> dict[str, Any]:
    """Measure everything."""
    shards, rows, claims = QUICK if quick else (SHARDS, ROWS, CLAIMED)
    began = time.monotonic()
    found: dict[str, Any] = surroundings(PACKAGES)
    parts: dict[str, Callable[[Path], Any]] = {
        "open": lambda folder: opening(folder, shards),
        "rows": lambda folder: of_rows(folder, rows),
        "claims": lambda folder: claiming(folder, claims),
        "shards and bytes": lambda folder: checking(costs(folder, quick=quick)),
    }
    for name, part in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = part(Path(folder))
    return found | {"time_s": time.monotonic() - began}


def dry_run(*, quick: bool) -> str:
    """Return the arithmetic for 10^12 tokens, with constants that are measured now."""
    cluster = arithmetic.Cluster()
    shards = QUICK[0][-1] if quick else arithmetic.shards_of(cluster)
    with tempfile.TemporaryDirectory() as folder:
        constants = costs(Path(folder), quick=quick)
        path = make_store(Path(folder) / "open", shards)
        small = make_store(Path(folder) / "small", 1)
        opened = measured(OPEN, path, small)["open"] | {"shards": shards}
    worked_out = arithmetic.lines_of(cluster, constants, opened)
    what = max(len(line.what) for line in worked_out)
    amount = max(len(line.amount) for line in worked_out)
    return "\n".join(f"{a:<{what}}  {b:>{amount}}  {c}" for a, b, c in worked_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="a smoke test; figures mean nothing")
    parser.add_argument(
        "--dry-run-1e12", action="store_true", help="work out 10^12 tokens on 64 GPUs, and end"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:  # nothing of this stays in the user's own
        os.environ[FOLDER_VARIABLE] = cache
        if args.dry_run_1e12:
            print(dry_run(quick=args.quick))
            return
        found = report(quick=args.quick)
    print(json.dumps(found) if args.json else "\n".join(lines(found, "scale")))


if __name__ == "__main__":
    main()
