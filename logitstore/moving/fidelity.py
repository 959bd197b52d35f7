"""Derive the fidelity of records that are copied from another store.

How far decoded values are from the teacher's exact ones can be measured only during a capture,
which has the exact ones. The fidelity of a shard made of parts of other shards is derived from
theirs: means weighted by the number of records, and the largest of the bounds. Tails and counts are
measured again, from the codes themselves.
"""

from collections.abc import Mapping, Sequence

from logitstore.format.encoded import NOTHING_MEASURED, EncodedRecords, measure
from logitstore.format.spec import StoreSpec

Fidelity = Mapping[str, float | int]

_MEANS = ("kl_mean", "l1_mean")


def of_parts(
    spec: StoreSpec, parts: Sequence[tuple[Fidelity, EncodedRecords]]
) -> dict[str, float | int]:
    """Return the fidelity of a shard that is made of these records.

    Args:
        spec: The spec of the new store.
        parts: For each sequence: the fidelity of the shard that it comes from, and its records.

    Returns:
        The fields of :func:`logitstore.format.encoded.measure`. `l1_max` is a bound for every
        record. `dropped_entries` is the sum over the shards that records come from, and so an upper
        bound on the entries that were left out of these records.
    """
    parts = [(source, encoded) for source, encoded in parts if len(encoded)]
    if not parts:
        return dict(NOTHING_MEASURED)
    fidelity = measure(EncodedRecords.concatenate([encoded for _, encoded in parts]), spec)
    total = sum(len(encoded) for _, encoded in parts)
    for name in _MEANS:
        weighted = sum(float(source[name]) * len(encoded) for source, encoded in parts)
        fidelity[name] = weighted / total
    fidelity["l1_max"] = max(float(source["l1_max"]) for source, _ in parts)
    sources = {id(source): source for source, _ in parts}  # each shard once
    fidelity["dropped_entries"] = sum(int(s["dropped_entries"]) for s in sources.values())
    return fidelity
