"""Decide which rows go into which shard, before the first is captured.

Boundaries are cut by cumulative text bytes over the whole dataset, so shards take about the same
time and disk whatever the order of the rows (a fixed number of rows makes some shards a hundred
times larger than others on length-sorted data). A row is never divided between shards.
"""

from collections.abc import Iterator

import numpy as np

from logitstore.format.hidden import HiddenSpec
from logitstore.format.numpy_types import I64
from logitstore.format.plan import MOST_IN_JSON, MOST_SHARDS_OF_ALL, Plan, too_many_shards

#: Text of a shard: about a million tokens, 180 MB of records at 64 entries each, and on a fast GPU
#: half a minute of work, which is what a crash can cost.
DEFAULT_SHARD_TEXT_BYTES = 4 * 1024 * 1024
#: Shards that a store has at most where their size is not asked for: each costs a line of the plan
#: and of the index, in every process that opens the store, and a file.
MOST_SHARDS = MOST_IN_JSON
#: Hidden states of a shard, about, and the bytes of text that a token has: a file has 4 GiB at
#: most, and a text of one byte a token four times as many states as this one.
_HIDDEN_BYTES, _TEXT_BYTES_PER_TOKEN = 256 * 1024 * 1024, 4
_PART_ROWS = 1 << 20
#: What the settings say of their default.
DEFAULT_IN_WORDS = f"{DEFAULT_SHARD_TEXT_BYTES}; more where that made over {MOST_SHARDS} shards"


def make_plan(dataset_sha256: str, text_bytes: I64, shard_text_bytes: int | None = None) -> Plan:
    """Cut a dataset where the running total of text passes a multiple of the size of a shard.

    Args:
        dataset_sha256: Identifies the dataset.
        text_bytes: (rows,) bytes of text in each row.
        shard_text_bytes: Bytes of text that a shard should have, at least 1; None: the default, or
            as many as make no more than `MOST_SHARDS` shards.

    Raises:
        InputError: More shards than a store can have.
    """
    size = shard_text_bytes
    if size is None:
        size = _default_size(sum(int(part.sum()) for part in _parts(text_bytes)))
    starts, before, last = [np.zeros(0, np.int64)], 0, -1
    for first, part in zip(range(0, len(text_bytes), _PART_ROWS), _parts(text_bytes), strict=True):
        totals = before + np.cumsum(part)
        shards = (totals - part) // size
        starts.append(first + np.flatnonzero(np.diff(shards, prepend=last)))
        before, last = int(totals[-1]), int(shards[-1])
    cuts = np.append(np.concatenate(starts), len(text_bytes))
    if len(cuts) - 1 > MOST_SHARDS_OF_ALL:
        raise too_many_shards(len(cuts) - 1)
    return Plan(dataset_sha256, cuts)


def shard_text_with_hidden(hidden: HiddenSpec) -> int:
    """Choose the bytes of text of a shard that has hidden states beside it."""
    states = max(1, _HIDDEN_BYTES // hidden.state_bytes)
    return min(DEFAULT_SHARD_TEXT_BYTES, states * _TEXT_BYTES_PER_TOKEN)


def _parts(text_bytes: I64) -> Iterator[I64]:
    """Yield what rows count, a million at a time: lists of a billion are not copied.

    An empty row still costs a line; a byte for each keeps a million empty rows from one shard.
    """
    for first in range(0, len(text_bytes), _PART_ROWS):
        yield text_bytes[first : first + _PART_ROWS].astype(np.int64) + 1


def _default_size(total: int) -> int:
    return max(DEFAULT_SHARD_TEXT_BYTES, -(-total // MOST_SHARDS))
