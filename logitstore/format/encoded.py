"""Records as they are stored, and what storing them cost in exactness."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from logitstore.format.logprob_codec import (
    TAIL_STEP,
    dequantise,
)
from logitstore.format.spec import StoreSpec

Array = npt.NDArray[Any]


#: What `measure` returns for a shard without records.
NOTHING_MEASURED: dict[str, float | int] = {
    "tail_mean": 0.0,
    "tail_p99": 0.0,
    "at_cap_fraction": 0.0,
    "entries_mean": 0.0,
    "kl_mean": 0.0,
    "l1_mean": 0.0,
    "l1_max": 0.0,
    "dropped_entries": 0,
}


@dataclass(frozen=True)
class EncodedRecords:
    """Records in stored form.

    Attributes:
        per_record: Arrays of length n. `byte_starts` is still absolute here: its stored form, the
            distance from the record before, exists only within a sequence.
        per_entry: Arrays of length m, the entries of all records.
        per_draw: Arrays with the distinct draws of all records.
        kl, l1, dropped: (n,) what coding changed (see `codec.EncodedEntries`).
    """

    per_record: dict[str, Array]
    per_entry: dict[str, Array]
    per_draw: dict[str, Array]
    kl: Array
    l1: Array
    dropped: Array
    _entry_offsets: Array = field(init=False, repr=False)
    _draw_offsets: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        draws = self.per_record.get("draw_count", np.zeros(len(self), np.int64))
        object.__setattr__(self, "_entry_offsets", _offsets(self.per_record["entry_count"]))
        object.__setattr__(self, "_draw_offsets", _offsets(draws))

    def __len__(self) -> int:
        return len(self.kl)

    @property
    def entry_total(self) -> int:
        return int(self._entry_offsets[-1])

    @property
    def draw_total(self) -> int:
        return int(self._draw_offsets[-1])

    def split(self, lengths: Sequence[int]) -> "list[EncodedRecords]":
        """Consecutive parts of so many records each."""
        stops = np.cumsum(lengths)
        return [
            self._part(int(stop) - n, int(stop)) for stop, n in zip(stops, lengths, strict=True)
        ]

    def _part(self, a: int, b: int) -> "EncodedRecords":
        e = slice(int(self._entry_offsets[a]), int(self._entry_offsets[b]))
        d = slice(int(self._draw_offsets[a]), int(self._draw_offsets[b]))
        return EncodedRecords(
            {k: v[a:b] for k, v in self.per_record.items()},
            {k: v[e] for k, v in self.per_entry.items()},
            {k: v[d] for k, v in self.per_draw.items()},
            self.kl[a:b],
            self.l1[a:b],
            self.dropped[a:b],
        )

    @classmethod
    def concatenate(cls, parts: "Sequence[EncodedRecords]") -> "EncodedRecords":
        """One after the other; needs at least one part."""

        def join(name: str) -> dict[str, Array]:
            dicts = [getattr(p, name) for p in parts]
            return {k: np.concatenate([d[k] for d in dicts]) for k in dicts[0]}

        kl, l1, dropped = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("kl", "l1", "dropped")
        )
        return cls(join("per_record"), join("per_entry"), join("per_draw"), kl, l1, dropped)


def _offsets(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def measure(encoded: EncodedRecords, spec: StoreSpec) -> dict[str, float | int]:
    """What this shard's coding and cutting cost, as numbers that travel with it.

    Returns:
        ``tail_mean``, ``tail_p99``: probability outside the entries. ``at_cap_fraction``: records
        that kept top_k entries and still have more tail than asked for. ``entries_mean`` a record.
        ``kl_mean`` (nats), ``l1_mean``, ``l1_max``: decoded against exact, over entries and tail.
        ``dropped_entries``: too improbable for the code, left out.
    """
    if len(encoded) == 0:
        return dict(NOTHING_MEASURED)
    tail = np.exp(dequantise(encoded.per_record["tail_logmass"], TAIL_STEP).astype(np.float64))
    at_cap = encoded.per_record["entry_count"] >= spec.top_k
    if spec.max_tail is not None:
        at_cap &= tail > spec.max_tail
    return {
        "tail_mean": float(tail.mean()),
        "tail_p99": float(np.quantile(tail, 0.99)),
        "at_cap_fraction": float(at_cap.mean()),
        "entries_mean": encoded.entry_total / len(encoded),
        "kl_mean": float(encoded.kl.mean(dtype=np.float64)),
        "l1_mean": float(encoded.l1.mean(dtype=np.float64)),
        "l1_max": float(encoded.l1.max()),
        "dropped_entries": int(encoded.dropped.sum()),
    }
