"""Measure the bytes a token of a store, and of what it would be with fewer entries."""

from dataclasses import replace

import numpy as np

from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import AXIS, ENTRIES
from logitstore.store import LogitStore
from logitstore.writing.shard_builder import build_shard


def bytes_per_token(store: LogitStore, top_k: int | None = None) -> float:
    """Sum the members of all shards, text included, as they are written for so many entries.

    Args:
        store: The store.
        top_k: Entries of a record at most; None: all.
    """
    total = 0
    for index in store.shards:
        first, count = store.first_sequence(index), len(store.shard(index).sequence_rows())
        lines = [
            (store.text(i), _cut(store.encoded(i), top_k)) for i in range(first, first + count)
        ]
        members = build_shard(store.spec, store.plan, index, lines)
        total += sum(len(memoryview(data)) for data in members.values())
    return total / int(store.token_counts.sum())


def _cut(encoded: EncodedRecords, top_k: int | None) -> EncodedRecords:
    """Leave out all but the first entries; their mass would go into the tail, a code as large."""
    if top_k is None:
        return encoded
    count = encoded.fields["entry_count"].astype(np.int64)
    place = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    kept = place < top_k
    fields = {
        name: values[kept] if AXIS[name] == ENTRIES else values
        for name, values in encoded.fields.items()
    }
    fields["entry_count"] = np.minimum(count, top_k).astype(encoded.fields["entry_count"].dtype)
    return replace(encoded, fields=fields)
