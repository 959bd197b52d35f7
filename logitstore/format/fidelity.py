"""Say how exact the records of a store are, from what the index says of each shard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Fidelity:
    """The exactness of a store, measured over all of its records when they were written.

    Attributes:
        tail_mean: Mean tail: the probability beyond the entries.
        tail_p99: The largest of the shards' 99th percentiles of it.
        at_cap_fraction: Records that kept top_k entries and still have more tail than asked for.
        entries_mean: Entries a record.
        kl_mean: KL(exact || decoded) over entries and tail, nats.
        l1_mean: L1 distance of the same; what quantisation adds to a ULD, on average.
        l1_max: The largest L1 of any record: a bound for any loss that is 1-Lipschitz in L1.
        dropped_entries: Too improbable for the code, left out.
    """

    tail_mean: float
    tail_p99: float
    at_cap_fraction: float
    entries_mean: float
    kl_mean: float
    l1_mean: float
    l1_max: float
    dropped_entries: int

    @classmethod
    def of(cls, shards: Sequence[Mapping[str, Any]]) -> Self:
        """Combine what the index says of each shard.

        Args:
            shards: The lines of the index.
        """
        weights = np.array([shard["records"] for shard in shards], np.float64)
        total = max(weights.sum(), 1.0)

        def mean(name: str) -> float:
            return float(sum(w * s[name] for w, s in zip(weights, shards, strict=True)) / total)

        def largest(name: str) -> float:
            return float(max((shard[name] for shard in shards), default=0.0))

        return cls(
            tail_mean=mean("tail_mean"),
            tail_p99=largest("tail_p99"),
            at_cap_fraction=mean("at_cap_fraction"),
            entries_mean=mean("entries_mean"),
            kl_mean=mean("kl_mean"),
            l1_mean=mean("l1_mean"),
            l1_max=largest("l1_max"),
            dropped_entries=sum(int(shard["dropped_entries"]) for shard in shards),
        )
