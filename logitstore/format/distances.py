"""Turn values into distances where those are smaller, and back.

`byte_starts` is stored as the distance from the end of the record before, in its sequence: mostly
zeros. Draws have two layouts. In the first, `draw_count` says how many distinct ones a record has,
and `sample_ids` holds them as they are. In the second, `draw_total` is the number of draws of a
record (nearly always the same, so it costs nothing: the distinct ones end where their counts add
up to it), and `sample_gaps` holds distances, which are smaller: 28.9 bytes a token for 50 draws
instead of 34.7.
"""

from collections.abc import Mapping

import numpy as np

from logitstore.format.logprob_codec import running_sums
from logitstore.format.numpy_types import I64, Array
from logitstore.format.spec import StoreSpec

_MAX_U8, _MAX_U16, _MAX_U32 = 0xFF, 0xFFFF, 0xFFFF_FFFF


def pack(fields: Mapping[str, Array], spec: StoreSpec, records: I64) -> dict[str, Array]:
    """Turn encoded fields into the arrays of a shard.

    Args:
        fields: Encoded fields of consecutive sequences, by name.
        spec: The store's.
        records: (sequences,) records of each sequence.

    Raises:
        ValueError: Byte spans overlap or run backwards, or draws are not in order.
    """
    arrays = dict(fields)
    arrays["byte_starts"] = pack_starts(arrays["byte_starts"], arrays["byte_lengths"], records)
    if spec.draws and spec.layout == 2:
        count, ids = arrays.pop("draw_count"), arrays.pop("sample_ids")
        arrays |= pack_draws(count, ids, arrays["sample_counts"])
    return arrays


def unpack(arrays: Mapping[str, Array], records: I64) -> dict[str, Array]:
    """Undo `pack` for those arrays that are given.

    Raises:
        ValueError: No fields can have been packed into these arrays.
    """
    fields = dict(arrays)
    if "byte_starts" in fields:
        lengths = fields["byte_lengths"].astype(np.int64)
        fields["byte_starts"] = unpack_starts(fields["byte_starts"], lengths, records)
    if "draw_total" in fields:
        total, gaps = fields.pop("draw_total"), fields.pop("sample_gaps")
        fields |= unpack_draws(total, gaps, fields["sample_counts"])
    elif {"draw_count", "sample_ids", "sample_counts"} <= fields.keys():
        _check_draws(fields["draw_count"], fields["sample_ids"], fields["sample_counts"])
    return fields


def _check_draws(count: Array, ids: Array, times: Array) -> None:
    """Check draws of the first layout, which are stored as they are.

    Raises:
        ValueError: A draw was never drawn, or those of a record do not ascend.
    """
    if times.size and int(times.min()) < 1:
        raise ValueError("a draw was drawn 0 times")
    rises = np.diff(ids.astype(np.int64)) >= 0
    firsts = np.cumsum(count.astype(np.int64))[:-1]
    rises[firsts[(firsts > 0) & (firsts < len(ids))] - 1] = True  # of the next record
    if not rises.all():
        raise ValueError("the draws of a record do not ascend")


def sums_of(values: Array, lengths: I64) -> I64:
    """Sum consecutive parts of the given lengths; 0 for an empty part."""
    if len(lengths) == 1:  # one sequence, read by itself
        return np.array([values.sum(dtype=np.int64)])
    running = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    stops = np.cumsum(lengths)
    return np.asarray(running[stops] - running[stops - lengths], np.int64)


def pack_starts(starts: Array, lengths: Array, records: I64) -> Array:
    """Turn the start of each record into its distance from the end of the one before.

    Args:
        starts: (n,) bytes before each record.
        lengths: (n,) bytes of each record.
        records: (sequences,) records of each sequence; its first record counts from 0.
    """
    ends = np.concatenate([[0], (starts + lengths)[:-1]])
    ends[(np.cumsum(records) - records)[records > 0]] = 0
    if (starts < ends).any():
        raise ValueError("the byte spans of a sequence overlap or run backwards")
    return np.asarray(starts - ends, np.uint32)


def unpack_starts(gaps: Array, lengths: I64, records: I64) -> I64:
    """Undo `pack_starts`: add distances up to starts, anew in each sequence."""
    reach = gaps.astype(np.int64) + lengths
    stops = np.cumsum(reach)
    before = np.concatenate([[0], stops])[np.cumsum(records) - records]
    return np.asarray(stops - lengths - np.repeat(before, records), np.int64)


def pack_draws(count: Array, ids: Array, times: Array) -> dict[str, Array]:
    """Turn distinct draws into the arrays of the second layout.

    Args:
        count: (n,) distinct draws of each record.
        ids: (d,) their ids, ascending within a record.
        times: (d,) how often each was drawn.
    """
    count = count.astype(np.int64)
    gaps = np.diff(ids.astype(np.int64), prepend=0)
    firsts = (np.cumsum(count) - count)[count > 0]
    gaps[firsts] = ids[firsts]
    if gaps.size and (gaps.min() < 0 or times.min() < 1):
        raise ValueError("the draws of a record are not ascending, or one was never drawn")
    total = sums_of(times, count)
    if total.max(initial=0) > _MAX_U16:
        raise ValueError(f"a record has {total.max()} draws, more than {_MAX_U16}")
    stored: dict[str, Array] = {
        "draw_total": total.astype(np.uint16),
        "sample_gaps": gaps.astype(np.uint32),
    }
    return stored | {"sample_counts": times.astype(np.uint16)}


def unpack_draws(total: Array, gaps: Array, times: Array) -> dict[str, Array]:
    """Undo `pack_draws`: find the distinct draws of each record, their ids and counts.

    Raises:
        ValueError: The counts do not add up, or an id is beyond any vocabulary.
    """
    if times.size and not 1 <= int(times.min()) <= int(times.max()) <= _MAX_U8:
        raise ValueError("a draw was drawn other than 1 to 255 times")
    drawn = np.concatenate([[0], np.cumsum(times, dtype=np.int64)])
    wanted = np.cumsum(total, dtype=np.int64)
    stops = np.searchsorted(drawn, wanted)
    if len(drawn) - 1 != (stops[-1] if stops.size else 0) or (drawn[stops] != wanted).any():
        raise ValueError("the counts of draws do not add up to those of the records")
    count = np.diff(stops, prepend=0)
    ids = running_sums(gaps.astype(np.int64), (stops - count)[count > 0])
    if ids.max(initial=0) > _MAX_U32:
        raise ValueError("a draw is beyond any vocabulary")
    return {
        "draw_count": count.astype(np.uint16),  # no more than `total`
        "sample_ids": ids.astype(np.uint32),
        "sample_counts": times.astype(np.uint8),
    }
