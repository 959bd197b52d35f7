"""Read the scalars of every record of a store, shard by shard, without entries or text.

This reads only a few bytes a token, so the distributions and extremes of a large store take
seconds.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from logitstore.console.terminal import bar
from logitstore.format.logprob_codec import TAIL_STEP, TOKEN_STEP, dequantise, dequantise_entropy
from logitstore.format.numpy_types import F32, I64
from logitstore.store import LogitStore

_BAR_COLUMNS = 40


class Scalars(NamedTuple):
    """The scalars of the records of one shard, in order; NaN where an import lacks them.

    Attributes:
        first: The number of the shard's first sequence in the store.
        surprise: (records,) -log p of the token, in nats.
        entropy: (records,) the entropy, in nats.
        tail: (records,) the tail, a probability.
        entries: (records,) the number of entries.
        stops: (sequences,) records before the end of each sequence.
    """

    first: int
    surprise: F32
    entropy: F32
    tail: F32
    entries: I64
    stops: I64


def scalars(store: LogitStore) -> Iterator[Scalars]:
    """Yield the scalars of every shard that has records."""
    counts, first = store.token_counts, 0
    for index, fact in zip(store.shards, store.shard_facts, strict=True):
        held = int(fact["sequences"])
        stops = np.cumsum(counts[first : first + held])
        if len(stops) and stops[-1]:
            shard, missing = store.shard(index), store.spec.missing
            read: dict[str, Any] = {
                "surprise": -dequantise(shard.array("token_logprob"), TOKEN_STEP),
                "entropy": dequantise_entropy(shard.array("entropy")),
                "tail": np.exp(dequantise(shard.array("tail_logmass"), TAIL_STEP)),
            }
            for field, name in (("entropy", "entropy"), ("tail_logmass", "tail")):
                if field in missing:
                    read[name] = np.full_like(read[name], np.nan)
            if "token_logprob" in missing:
                read["surprise"][np.isinf(read["surprise"])] = np.nan
            entries = shard.array("entry_count").astype(np.int64)
            yield Scalars(first, entries=entries, stops=stops, **read)
        first += held


#: Each histogram's label, and the edges of its bins; the last bin is open.
_BINS: dict[str, tuple[str, list[float]]] = {
    "surprise": ("surprise, nats", [0, 0.01, 0.1, 0.5, 1, 2, 4, 6, 8, 12, 16]),
    "entropy": ("entropy, nats", [0, 0.01, 0.1, 0.5, 1, 1.5, 2, 3, 4, 6, 8]),
    "tail": (
        "tail, probability beyond the entries",
        [0, 1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
    ),
    "entries": ("entries a token", [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
}


def histograms(store: LogitStore) -> dict[str, Any]:
    """Count each scalar's values in bins.

    Returns:
        For each scalar: ``label``, ``edges`` of the bins, ``counts`` in them (the last bin is
        open), and ``unknown``, the number of records without a value.
    """
    histograms_: dict[str, dict[str, Any]] = {
        name: {"label": label, "edges": edges, "counts": [0] * len(edges), "unknown": 0}
        for name, (label, edges) in _BINS.items()
    }
    for shard in scalars(store):
        for name, histogram in histograms_.items():
            values = np.asarray(getattr(shard, name), np.float64)
            known = values[~np.isnan(values)]
            bins = np.searchsorted(histogram["edges"], np.maximum(known, 0), side="right") - 1
            counts = np.bincount(bins, minlength=len(histogram["counts"]))
            histogram["counts"] = (np.array(histogram["counts"]) + counts).tolist()
            histogram["unknown"] += len(values) - len(known)
    return histograms_


def histogram_text(found: dict[str, Any]) -> str:
    """Draw histograms as bars of text, each below its label."""
    lines = []
    for histogram in found.values():
        counts, edges = histogram["counts"], histogram["edges"]
        total = sum(counts)
        lines.append(f"\n{histogram['label']}")
        if not total:
            lines.append("  not known")
            continue
        last = max(i for i, count in enumerate(counts) if count)
        for i in range(last + 1):
            stop = f"- {edges[i + 1]:g}" if i + 1 < len(edges) else "and more"
            share = counts[i] / total
            lines.append(
                f"  {edges[i]:>6g} {stop:<9} {share:>6.1%}  "
                f"{bar(counts[i] / max(counts), _BAR_COLUMNS)}".rstrip()
            )
        if histogram["unknown"]:
            lines.append(f"  not known for {histogram['unknown']:,} tokens")
    return "\n".join(lines)


def worst(store: LogitStore, count: int) -> dict[str, list[dict[str, Any]]]:
    """Find the records with the largest surprise, and those with the largest tail.

    Args:
        store: The store.
        count: How many records of either kind.
    """
    largest: dict[str, list[dict[str, Any]]] = {"surprise": [], "tail": []}
    for shard in scalars(store):
        for name, kept in largest.items():
            values = np.nan_to_num(getattr(shard, name), nan=-1.0)
            for t in np.argsort(-values, kind="stable")[:count].tolist():
                if values[t] < 0:
                    continue
                place = int(np.searchsorted(shard.stops, t, side="right"))
                record = t - (int(shard.stops[place - 1]) if place else 0)
                at = {"sequence": shard.first + place, "record": record}
                kept.append(at | {name: float(values[t])})
            kept.sort(key=lambda record, name=name: -record[name])  # type: ignore[misc]
            del kept[count:]
    return largest
