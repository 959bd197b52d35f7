"""Hold records in encoded form, and measure how much exactness the coding cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from logitstore.format.fields import AXIS, DRAWS, ENTRIES, RECORDS
from logitstore.format.hidden import EncodedStates
from logitstore.format.logprob_codec import (
    TAIL_STEP,
    dequantise,
)
from logitstore.format.numpy_types import Array
from logitstore.format.spec import StoreSpec

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
    """Records in encoded form: small integers, in one flat array a field.

    Attributes:
        fields: By name, as `format.fields` lists them. `byte_starts` is absolute here: its stored
            form, the distance from the record before, exists only within a sequence.
        kl, l1, dropped: (n,) the coding error (see `logprob_codec.EncodedEntries`); zeros where it
            is not known.
        hidden: The hidden states beside the records of one sequence; None: there are none, or these
            are the records of several.
    """

    fields: dict[str, Array]
    kl: Array
    l1: Array
    dropped: Array
    hidden: EncodedStates | None = None
    _offsets: dict[str, Array] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        counts = {RECORDS: np.ones(len(self), np.int64), ENTRIES: self.fields["entry_count"]}
        counts[DRAWS] = self.fields.get("draw_count", np.zeros(len(self), np.int64))
        object.__setattr__(self, "_offsets", {axis: _offsets(n) for axis, n in counts.items()})

    @classmethod
    def unmeasured(cls, fields: dict[str, Array]) -> "EncodedRecords":
        """Make records whose coding error is not known: those read from a store."""
        nothing = np.zeros(len(fields["token_ids"]), np.float32)
        return cls(fields, nothing, nothing, np.zeros(len(nothing), np.int64))

    def __len__(self) -> int:
        return len(self.kl)

    def total(self, axis: str) -> int:
        """Count the records, entries or draws."""
        return int(self._offsets[axis][-1])

    def split(self, lengths: Sequence[int]) -> "list[EncodedRecords]":
        """Cut into consecutive parts of N records each."""
        stops = np.cumsum(lengths)
        return [
            self._part(int(stop) - n, int(stop)) for stop, n in zip(stops, lengths, strict=True)
        ]

    def _part(self, start: int, stop: int) -> "EncodedRecords":
        cuts = {axis: slice(int(o[start]), int(o[stop])) for axis, o in self._offsets.items()}
        fields = {name: values[cuts[AXIS[name]]] for name, values in self.fields.items()}
        kl, l1, dropped = (values[start:stop] for values in (self.kl, self.l1, self.dropped))
        return EncodedRecords(fields, kl, l1, dropped)

    @classmethod
    def concatenate(cls, parts: "Sequence[EncodedRecords]") -> "EncodedRecords":
        """Join parts in the order given; there must be at least one."""
        names = parts[0].fields
        fields = {name: np.concatenate([p.fields[name] for p in parts]) for name in names}
        kl, l1, dropped = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("kl", "l1", "dropped")
        )
        return cls(fields, kl, l1, dropped)


def _offsets(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def measure(encoded: EncodedRecords, spec: StoreSpec) -> dict[str, float | int]:
    """Measure how exact a shard's records are, in the numbers that are stored with it.

    Returns:
        ``tail_mean``, ``tail_p99``: probability in the tail. ``at_cap_fraction``: records that kept
        top_k entries and still have more tail than asked for. ``entries_mean``: entries a record.
        ``kl_mean`` (nats), ``l1_mean``, ``l1_max``: decoded against exact, over entries and tail.
        ``dropped_entries``: too improbable for the code, left out.
    """
    if len(encoded) == 0:
        return dict(NOTHING_MEASURED)
    tail = np.exp(dequantise(encoded.fields["tail_logmass"], TAIL_STEP).astype(np.float64))
    at_cap = encoded.fields["entry_count"] >= spec.top_k
    if spec.max_tail is not None:
        at_cap &= tail > spec.max_tail
    return {
        "tail_mean": float(tail.mean()),
        "tail_p99": float(np.quantile(tail, 0.99)),
        "at_cap_fraction": float(at_cap.mean()),
        "entries_mean": encoded.total(ENTRIES) / len(encoded),
        "kl_mean": float(encoded.kl.mean(dtype=np.float64)),
        "l1_mean": float(encoded.l1.mean(dtype=np.float64)),
        "l1_max": float(encoded.l1.max()),
        "dropped_entries": int(encoded.dropped.sum()),
    }
