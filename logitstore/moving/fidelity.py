"""Fidelity of records that come from another store: what was measured once is kept.

How far decoded values are from the teacher's exact ones can be measured only where the exact ones
are. A shard made of parts of other shards says what follows from theirs: means weighted by records,
the largest of the bounds. Tails and counts are measured anew, from the codes themselves.
"""

from collections.abc import Mapping, Sequence

from logitstore.format.encoded import NOTHING_MEASURED, EncodedRecords, measure
from logitstore.format.spec import StoreSpec

Fidelity = Mapping[str, float | int]

_MEANS = ("kl_mean", "l1_mean")


def of_parts(
    spec: StoreSpec, parts: Sequence[tuple[Fidelity, EncodedRecords]]
) -> dict[str, float | int]:
    """What a shard of these records may claim.

    Args:
        spec: Of the new store.
        parts: For each sequence with records, what its shard says of itself, and the records.

    Returns:
        As :func:`logitstore.format.encoded.measure`. `l1_max` holds for every record;
        `dropped_entries` is that of all shards the records are of, so at most so many were left out
        here.
    """
    parts = [(said, encoded) for said, encoded in parts if len(encoded)]
    if not parts:
        return dict(NOTHING_MEASURED)
    found = measure(EncodedRecords.concatenate([encoded for _, encoded in parts]), spec)
    total = sum(len(encoded) for _, encoded in parts)
    for name in _MEANS:
        found[name] = sum(float(said[name]) * len(encoded) for said, encoded in parts) / total
    found["l1_max"] = max(float(said["l1_max"]) for said, _ in parts)
    sources = {id(said): said for said, _ in parts}
    found["dropped_entries"] = sum(int(said["dropped_entries"]) for said in sources.values())
    return found
