"""Measure the bytes a token of everything that a store may keep, by codec, and of other formats.

Sizes are those of the arrays' members in a shard, as the writer makes them. Chunk indexes and
checksums are included; `zarr.json` (a few hundred bytes a shard) and the text are not. Used by
`tools/bench_store.py`.

Shape legend: n = tokens, K = entries asked for.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.format.encoded import EncodedRecords
from logitstore.format.shard_arrays import array_specs
from logitstore.format.shard_group import ShardSize
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zarr_arrays import encode_array
from logitstore.reading.shard import Shard
from logitstore.records import Segment, SequenceText
from logitstore.writing.encode import RawRecords, encode_records
from logitstore.writing.shard_builder import build_shard
from tools.synthetic_teacher import Arrays

Array = npt.NDArray[Any]
CODECS = ("portable", "compact")
ENTRIES = ("entry_ids", "entry_logprobs", "entry_count")
POSITIONS = ("byte_starts", "byte_lengths")
SCALARS = ("token_ids", "token_logprob", "tail_logmass", "entropy", *POSITIONS)
DRAWS = ("draw_total", "sample_gaps", "sample_counts")

#: The cells of the table: settings of the capture, fields counted, goals of both codecs.
CELLS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[float, float]]] = {
    "entries, K = 64": ({"top_k": 64}, ENTRIES, (169, 163)),
    "entries, K = 16": ({"top_k": 16}, ENTRIES, (47.5, 46)),
    "log-probabilities only, K = 64": ({"top_k": 64, "ids": False}, ENTRIES, (34, 32)),
    "entries, --max-tail 0.05, K = 64": ({"top_k": 64, "max_tail": 0.05}, ENTRIES, (80, 75)),
    "50 draws, no head": ({"top_k": 0, "draws": 50}, DRAWS, (30, 27)),
    "token id, log-prob, tail, entropy, byte spans": ({"top_k": 64}, SCALARS, (9, 8)),
}


def spec_of(vocab_size: int, codec: str, **capture: Any) -> StoreSpec:
    """Make the spec of a store of the synthetic teacher."""
    settings: dict[str, Any] = {"top_k": 64, "max_tail": None, "ids": True, "draws": 0}
    spec = StoreSpec(
        teacher={
            "fingerprint": "0" * 64,
            "architecture": "Synthetic",
            "dtype": "float32",
            "vocab_size": vocab_size,
        },
        tokenizer={"fingerprint": "0" * 64, "size": vocab_size, "eos_ids": [], "files": {}},
        rendering={"kind": "text"},
        capture=settings | {"temperatures": [], "logit_std": False} | capture,
    )
    return replace(spec, codec=spec.codec | {"name": codec})


def raw_records(made: Arrays, spec: StoreSpec) -> RawRecords:
    """Return the synthetic teacher's records, as a capture with this spec would have them."""
    n, k = len(made["token_ids"]), spec.top_k
    p_nk = np.exp(made["top_logprobs"].astype(np.float64))
    # The tail after 0, 1, … entries, summed from the smallest, so that nothing cancels.
    outside = np.exp(made["tail_logmass"].astype(np.float64))[:, None]
    tails = np.cumsum(np.concatenate([outside, p_nk[:, ::-1]], axis=1), axis=1)[:, ::-1]
    count = np.full(n, k)
    if spec.max_tail is not None:
        fits = tails[:, 1 : k + 1] <= spec.max_tail
        count = np.where(fits.any(axis=1), fits.argmax(axis=1) + 1, k)
    draws = _distinct(made["draw_ids"]) if spec.draws else {}
    return RawRecords(
        token_ids=made["token_ids"],
        byte_starts=np.cumsum(made["byte_lengths"], dtype=np.int64) - made["byte_lengths"],
        byte_lengths=made["byte_lengths"],
        token_logprob=made["token_logprob"],
        entry_logprobs=made["top_logprobs"][:, :k],
        entry_ids=made["top_ids"][:, :k] if spec.has_ids else None,
        entry_count=count,
        tail_logmass=np.log(tails[np.arange(n), count]).astype(np.float32),
        entropy=made["entropy"],
        **draws,
    )


def _distinct(drawn_nd: Array) -> Arrays:
    """Convert sorted draws to distinct draws and their counts."""
    is_new = np.ones(drawn_nd.shape, bool)
    is_new[:, 1:] = drawn_nd[:, 1:] != drawn_nd[:, :-1]
    count, place = is_new.sum(axis=1), np.cumsum(is_new, axis=1) - 1
    ids, times = np.zeros_like(drawn_nd), np.zeros(drawn_nd.shape, np.int64)
    rows = np.broadcast_to(np.arange(len(drawn_nd))[:, None], drawn_nd.shape)
    ids[rows, place] = drawn_nd
    np.add.at(times, (rows, place), 1)
    return {"draw_count": count, "sample_ids": ids, "sample_counts": times}


def as_sequence(encoded: EncodedRecords, row: int) -> tuple[SequenceText, EncodedRecords]:
    """Return records as a sequence: one whole row of made-up text."""
    lengths = encoded.fields["byte_lengths"].astype(np.int64)
    fields = encoded.fields | {"byte_starts": np.cumsum(lengths) - lengths}
    text = ("word " * (int(lengths.sum()) // 5 + 1))[: int(lengths.sum())]
    line = SequenceText(row, 0, "ok", (Segment(text, True),))
    return line, replace(encoded, fields=fields)


def sizes(made: Arrays, spec: StoreSpec, tokens_of_a_sequence: int = 512) -> dict[str, float]:
    """Return the bytes a token of each array in one shard, and ``kl``, coding's mean KL in nats."""
    encoded = encode_records(raw_records(made, spec), spec)
    n = len(encoded)
    lengths = [min(tokens_of_a_sequence, n - i) for i in range(0, n, tokens_of_a_sequence)]
    lines = [as_sequence(part, row) for row, part in enumerate(encoded.split(lengths))]
    members = build_shard(spec, Plan("0" * 64, np.array([0, len(lines)])), 0, lines)
    data = {name.split("/")[0]: len(d) for name, d in members.items() if "/c/" in name}
    return {name: size / n for name, size in data.items()} | {"kl": float(encoded.kl.mean())}


def cell(found: Mapping[str, float], fields: tuple[str, ...]) -> float:
    """Return the bytes a token of some arrays together."""
    return sum(found.get(name, 0.0) for name in fields)


def beside(made: Arrays, k: int = 64) -> dict[str, float]:
    """Return the bytes a token of the same entries elsewhere: naive, Parquet, order-0 entropy."""
    spec = spec_of(int(made["top_ids"].max()) + 1, "portable", top_k=k)
    encoded = encode_records(raw_records(made, spec), spec)
    n = len(encoded)
    ids = pa.array(list(made["top_ids"][:, :k]), pa.list_(pa.uint32()))
    values = pa.array(list(made["top_logprobs"][:, :k].astype(np.float16)), pa.list_(pa.float16()))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"ids": ids, "logprobs": values}), sink, compression="zstd")
    floors = {name: order_0(encoded.fields[name]) / n for name in ("entry_ids", "entry_logprobs")}
    return {
        "naive u32 + f16": 6.0 * k,
        "Parquet, zstd": sink.getvalue().size / n,
        "order 0, ids": floors["entry_ids"],
        "order 0, log-probabilities": floors["entry_logprobs"],
    }


def order_0(values: Array) -> float:
    """Return the bytes by the entropy of single symbols, their table not counted."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def recoded(shards: list[Shard], codec: str) -> dict[str, float]:
    """Return the bytes a token of a store's arrays, as this codec would code them."""
    found: dict[str, float] = {}
    for shard in shards:
        spec = replace(shard.spec, codec=shard.spec.codec | {"name": codec})
        size = ShardSize(**vars(shard.size))
        for one in array_specs(spec, size):
            if one.chunk_count:
                values = shard.array(one.name)
                ways = [one]
                if one.name == "entry_ids" and one.coding == "bitshuffle":
                    ways.append(replace(one, coding="shuffle"))  # as the writer would choose
                smallest = min(len(encode_array(way, values)) for way in ways)
                found[one.name] = found.get(one.name, 0.0) + smallest
    records = max(sum(s.size.records for s in shards), 1)
    return {name: size / records for name, size in found.items()}
