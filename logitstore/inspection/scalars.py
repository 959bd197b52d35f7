"""Read the scalars of every record of a store, shard by shard, without entries or text.

This reads only a few bytes a token, so the distributions and extremes of a large store take
seconds.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from logitstore.console.counts import counted
from logitstore.console.terminal import bar
from logitstore.format.logprob_codec import TAIL_STEP, TOKEN_STEP, dequantise, dequantise_entropy
from logitstore.format.numpy_types import F32, F64, I64
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


class Survey(NamedTuple):
    """What one pass over the scalars of every record found.

    Attributes:
        histograms: Of each scalar: ``label``, ``edges`` of the bins, ``counts`` in them (the last
            bin is open), ``unknown``, the number of records without a value, and ``mean`` of those
            with a finite one (None without any).
        impossible: Records whose token the teacher had given no probability at all.
        first_surprise: The mean surprise of the first token of a sequence; None if not known.
        sequence_surprise: (sequences,) the mean surprise of each sequence's tokens, an impossible
            one counted as `MOST_SURPRISE`; NaN where it has none.
    """

    histograms: dict[str, Any]
    impossible: int
    first_surprise: float | None
    sequence_surprise: F64


#: A token that the teacher had excluded is as surprising as one of e^-32, in a mean.
MOST_SURPRISE = 32.0


def survey(store: LogitStore) -> Survey:
    """Read the scalars of every record once, for all that is said of them together."""
    found: dict[str, dict[str, Any]] = {
        name: {"label": label, "edges": edges, "counts": [0] * len(edges), "unknown": 0}
        for name, (label, edges) in _BINS.items()
    }
    sums, finite = dict.fromkeys(_BINS, 0.0), dict.fromkeys(_BINS, 0)
    means, firsts, impossible = np.full(len(store), np.nan), [np.zeros(0)], 0
    for shard in scalars(store):
        for name, histogram in found.items():
            values = np.asarray(getattr(shard, name), np.float64)
            _count(histogram, values)
            sums[name] += float(values[np.isfinite(values)].sum())
            finite[name] += int(np.isfinite(values).sum())
        surprise = shard.surprise.astype(np.float64)
        impossible += int(np.isinf(surprise).sum())
        begins = np.concatenate([[0], shard.stops[:-1]])
        held = shard.stops > begins
        firsts.append(surprise[begins[held]])
        means[shard.first : shard.first + len(begins)] = _means(surprise, begins, shard.stops)
    for name, histogram in found.items():
        histogram["mean"] = sums[name] / finite[name] if finite[name] else None
    first = np.concatenate(firsts)
    first = first[np.isfinite(first)]
    return Survey(found, impossible, float(first.mean()) if len(first) else None, means)


def histograms(store: LogitStore) -> dict[str, Any]:
    """Count each scalar's values in bins, as `Survey.histograms` describes."""
    return survey(store).histograms


def _count(histogram: dict[str, Any], values: F64) -> None:
    known = values[~np.isnan(values)]
    bins = np.searchsorted(histogram["edges"], np.maximum(known, 0), side="right") - 1
    counts = np.bincount(bins, minlength=len(histogram["counts"]))
    histogram["counts"] = (np.array(histogram["counts"]) + counts).tolist()
    histogram["unknown"] += len(values) - len(known)


def _means(surprise: F64, begins: I64, stops: I64) -> F64:
    """Average over each sequence's tokens; NaN where one is not known, or there is none."""
    sums = np.concatenate([[0.0], np.cumsum(np.clip(surprise, 0, MOST_SURPRISE))])
    with np.errstate(invalid="ignore"):
        means: F64 = (sums[stops] - sums[begins]) / (stops - begins)
    return means


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
            lines.append(f"  not known for {counted(histogram['unknown'], 'token')}")
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
