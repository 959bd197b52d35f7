"""Is the store small and fast? Sizes of everything it may keep, and reading beside other formats.

    python -m tools.bench_store [--json] [--quick]

Sizes are measured on the synthetic teacher (V = 128,256) and on a small real one, which the demo's
code trains; both are kept under build/ for the next run. Then encoding is compared with the bare
codec, and reading with bare decoding, zarr and `datasets` (see `tools/store_reading.py`). A figure
with a goal is an object {"value", "target", "met"}. At most 8 minutes on two cores.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from logitstore.format.chunk_codecs import CODINGS
from logitstore.format.logprob_codec import encode_entries
from logitstore.format.shard_arrays import array_specs
from logitstore.format.shard_group import ShardSize
from logitstore.format.zarr_arrays import ArraySpec, encode_array
from logitstore.store import open_store
from logitstore.writing.encode import RawRecords, encode_records
from tools.benchmark import goal, is_goal, surroundings
from tools.demo.__main__ import capture_command
from tools.demo.commands import Commands
from tools.demo.corpus import load_corpus, write_jsonl
from tools.demo.hub import make_models
from tools.demo.settings import TINY, cores
from tools.store_reading import (
    bare,
    loaders,
    many,
    medians,
    through_datasets,
    through_zarr,
    write_store,
)
from tools.store_sizes import (
    CELLS,
    CODECS,
    ENTRIES,
    POSITIONS,
    SCALARS,
    beside,
    cell,
    raw_records,
    recoded,
    sizes,
    spec_of,
)
from tools.synthetic_teacher import Arrays, cached_topk

BUILD = Path(__file__).resolve().parent.parent / "build"
MAX_KL = 1e-5
#: The demo's teacher is trained only until its predictions are like a language model's.
REAL = replace(TINY, teacher_steps=100, teacher_bytes=1_000_000, student_bytes=60_000)
QUICK = {"n_tokens": 1024, "vocab_size": 2048, "k": 128}

PACKAGES = ("numpy", "numcodecs", "pcodec", "zarr", "datasets", "pyarrow", "torch")


def synthetic_sizes(made: Arrays) -> dict[str, Any]:
    """Measure the cells of the table of goals, by codec, and what is in none of them."""
    vocab_size = int(made["top_ids"].max()) + 1
    found: dict[str, Any] = {codec: {} for codec in CODECS}
    for name, (capture, fields, goals) in CELLS.items():
        for codec, target in zip(CODECS, goals, strict=True):
            one = sizes(made, spec_of(vocab_size, codec, **capture))
            found[codec][name] = goal(cell(one, fields), at_most=target)
            if capture.get("top_k"):
                found[codec][f"KL in nats, {name}"] = goal(one["kl"], at_most=MAX_KL)
    for codec in CODECS:
        found[codec] |= {"parts": parts(sizes(made, spec_of(vocab_size, codec)))}
    return found | {"beside": beside(made)}


def parts(by_array: dict[str, float]) -> dict[str, float]:
    """Sum up the bytes a token of a record's parts: ids, log-probabilities, scalars, draws."""
    arrays = {name: size for name, size in by_array.items() if name != "kl"}
    scalars = [name for name in SCALARS if name not in POSITIONS]
    return {
        "entries": cell(arrays, ENTRIES),
        "of these ids": cell(arrays, ("entry_ids",)),
        "of these log-probabilities": cell(arrays, ("entry_logprobs",)),
        "scalars": cell(arrays, tuple(scalars)),
        "positions": cell(arrays, POSITIONS),
        "total": sum(arrays.values()),
    }


def real_sizes() -> dict[str, Any]:
    """Measure the same parts of a store that a trained teacher's capture wrote."""
    out = BUILD / "bench_store"
    if not (out / "store" / "DONE").exists():
        corpus = load_corpus(**REAL.corpus_bytes)
        (out / "data").mkdir(parents=True, exist_ok=True)
        write_jsonl(out / "data" / "student.jsonl", corpus.student)
        if not (out / "teacher").exists():
            make_models(out, REAL)
        Commands(out / "cache").run(capture_command(out, REAL), threads=cores())
    store = open_store(out / "store")
    shards = [store.shard(i) for i in store.shards]
    found: dict[str, Any] = {codec: parts(recoded(shards, codec)) for codec in CODECS}
    facts = {"tokens": sum(s.size.records for s in shards), "vocab_size": store.spec.vocab_size}
    return found | facts | {"KL in nats": store.fidelity.kl_mean}


def encoding(made: Arrays, repeats: int) -> dict[str, Any]:
    """Compare the time of the bare codec, compressing final arrays, with that of all encoding."""
    found = {}
    for codec in CODECS:
        spec = spec_of(int(made["top_ids"].max()) + 1, codec)
        raw = raw_records(made, spec)
        raw = replace(
            raw,
            entry_logprobs=np.ascontiguousarray(raw.entry_logprobs),
            entry_ids=np.ascontiguousarray(raw.entry_ids),
            entry_count=np.asarray(raw.entry_count, np.int64),
        )
        fields = encode_records(raw, spec).fields
        final = {name: fields[name] for name in ("entry_ids", "entry_logprobs")}
        size = ShardSize(1, len(raw.token_ids), len(final["entry_ids"]), 0)
        specs = [s for s in array_specs(spec, size) if s.name in final]
        ours, alone = partial(_encode, raw, specs), partial(_compress, final, specs)
        found[codec] = goal(ratio(alone, ours, repeats), at_least=0.5)
    return found


def _encode(raw: RawRecords, specs: list[ArraySpec]) -> None:
    coded = encode_entries(raw.entry_logprobs, raw.entry_ids, raw.entry_count, raw.tail_logmass)
    arrays: dict[str, Any] = {"entry_ids": coded.ids, "entry_logprobs": coded.deltas}
    for s in specs:
        encode_array(s, arrays[s.name])


def _compress(final: dict[str, Any], specs: list[ArraySpec]) -> None:
    for s in specs:
        for i in range(0, s.shape[0], s.chunk_length):
            part = final[s.name][i : i + s.chunk_length]
            CODINGS[s.coding].encode(part, part.size)


def ratio(a: Callable[[], None], b: Callable[[], None], repeats: int) -> float:
    """Return the median CPU time of `a` over that of `b`, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, into in zip((a, b), times, strict=True):
            began = time.process_time()
            run()
            into.append(time.process_time() - began)
    return statistics.median(times[0]) / statistics.median(times[1])


def reading(made: Arrays, codec: str, folder: Path, quick: bool) -> dict[str, Any]:
    """Measure reading of random sequences of about 500 tokens, from a warm cache."""
    store = write_store(folder / "store", made, codec, shards=2 if quick else 8)
    rng = np.random.default_rng(1)
    rows = rng.integers(len(store), size=10 if quick else 150).tolist()
    batches = rng.integers(len(store), size=(3 if quick else 24, 32)).tolist()
    readers: dict[str, Any] = {
        "bare": bare(store),
        "entries": store.entries,
        "record": store.__getitem__,
        "record and text": lambda i: (store[i], store.text(i)),
        "zarr": through_zarr(store, folder / "unpacked"),
    }
    nested = through_datasets(store, folder / "datasets")
    for read in (*readers.values(), *nested.values()):
        for i in range(len(store) if read is not nested["lists"] else 2):
            read(i)  # warm
    seconds = medians(readers, rows) | medians(nested, rows[: len(rows) // 5])
    together = many(store, batches)
    rates = loaders(folder / "store", batches * (2 if quick else 8), 1 if quick else 3)
    tokens, ours = float(np.median(store.token_counts[rows])), seconds["entries"]
    return {
        "entries over bare decoding": goal(seconds["bare"] / ours, at_least=0.5),
        "entries over zarr's LocalStore": goal(seconds["zarr"] / ours, at_least=8),
        "entries over datasets, in numpy": goal(seconds["numpy"] / ours, at_least=20),
        "read_many over single reads": goal(
            together["single"] / together["together"], at_least=1.5
        ),
        "two workers over one": goal(rates[2] / rates[1], at_least=1.7),
        "beside": {
            "bare decoding over datasets, in numpy": seconds["numpy"] / seconds["bare"],
            "entries over datasets, as lists": seconds["lists"] / ours,
            "milliseconds": {name: 1e3 * s for name, s in seconds.items()},
            "tokens a second, entries": tokens / ours,
            "tokens a second, records": tokens / seconds["record"],
            "tokens a second, read_many": tokens / together["together"],
            "tokens a second, two workers": rates[2],
            "tokens a sequence": tokens,
        },
    }


def lines(value: Any, name: str = "", depth: int = 0) -> list[str]:
    """Format the report for people: a line for each figure, with goal and outcome."""
    indent = "  " * depth
    if is_goal(value):
        outcome = "" if value["met"] else "  MISSED"
        figure = f"{value['value']:>12.4g}"
        return [f"{indent}{name:<{58 - 2 * depth}}{figure}  goal {value['target']:<8g}{outcome}"]
    if isinstance(value, dict):
        below = [line for key, item in value.items() for line in lines(item, key, depth + 1)]
        return [f"{indent}{name}", *below]
    figure = f"{value:>12,.4g}" if isinstance(value, float) else f"{value!s:>12}"
    return [f"{indent}{name:<{58 - 2 * depth}}{figure}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="a smoke test; figures mean nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # zarr's, on members of a shard that are no arrays
    pa.set_cpu_count(1)
    torch.set_num_threads(cores())
    began = time.monotonic()
    made = cached_topk(QUICK if args.quick else None)
    found: dict[str, Any] = surroundings(PACKAGES)
    found["bytes a token, synthetic"] = synthetic_sizes(made)
    if not args.quick:
        found["bytes a token, real"] = real_sizes()
    found["encoding over the bare codec"] = encoding(made, 2 if args.quick else 9)
    for codec in CODECS:
        with tempfile.TemporaryDirectory() as folder:
            found[f"reading, {codec}"] = reading(made, codec, Path(folder), args.quick)
    found["time_s"] = time.monotonic() - began
    print(json.dumps(found) if args.json else "\n".join(lines(found, "store")))


if __name__ == "__main__":
    main()
