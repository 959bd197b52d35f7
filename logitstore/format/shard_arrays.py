"""Which arrays a shard has, and the form in which they are stored.

Records, entries and draws are three axes. Where a sequence lies on each is in `sequence_records`,
`sequence_entries` and `sequence_draws`. Stored are, instead of values, distances where those are
smaller: `byte_starts` from the end of the record before; draws from the one before.

Draws have two layouts. In the first, `draw_count` says how many distinct ones a record has, and
`sample_ids` holds them as they are. In the second, `draw_total` says how often was drawn (nearly
always the same, so it costs nothing: the distinct ones end where their counts add up to it), and
`sample_gaps` holds distances, which are smaller: 28.9 bytes a token for 50 draws, and not 34.7.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from logitstore.format.chunk_codecs import PCODEC_TYPES
from logitstore.format.limits import check_ratio
from logitstore.format.logprob_codec import running_sums
from logitstore.format.shard_group import ShardSize
from logitstore.format.spec import StoreSpec
from logitstore.format.zarr_arrays import ArrayReader, ArraySpec

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]

_SEQUENCES_PER_CHUNK = 1024
_AXIS = {
    "entry_logprobs": "sequence_entries",
    "entry_ids": "sequence_entries",
    "sample_ids": "sequence_draws",
    "sample_gaps": "sequence_draws",
    "sample_counts": "sequence_draws",
}
_MAX_U8, _MAX_U16, _MAX_U32 = 0xFF, 0xFFFF, 0xFFFF_FFFF


def axis_of(name: str) -> str:
    """The array that says where a sequence lies in this one."""
    return _AXIS.get(name, "sequence_records")


def array_specs(spec: StoreSpec, size: ShardSize) -> list[ArraySpec]:
    """Every array of a shard of this store, optional blocks as the spec says."""
    per_record = int(spec.codec["records_per_chunk"])
    per_entry = int(spec.codec["entries_per_chunk"])

    def array(name: str, dtype: str, shape: tuple[int, ...], chunk: int, shuffle: str) -> ArraySpec:
        known = np.dtype(dtype)
        compact = spec.codec["name"] == "compact" and known.name in PCODEC_TYPES
        slow = name == "sample_gaps"
        coding = ("pcodec_slow" if slow else "pcodec") if compact else shuffle
        return ArraySpec(name, known, shape, chunk, coding)

    def record(name: str, dtype: str, *columns: int) -> ArraySpec:
        return array(name, dtype, (size.records, *columns), per_record, "bitshuffle")

    def entry(name: str, dtype: str) -> ArraySpec:
        return array(name, dtype, (size.entries,), per_entry, "bitshuffle")

    def draw(name: str, dtype: str, shuffle: str) -> ArraySpec:
        return array(name, dtype, (size.draws,), per_entry, shuffle)

    def sequence(name: str) -> ArraySpec:
        return array(name, "<u8", (size.sequences + 1,), _SEQUENCES_PER_CHUNK, "bitshuffle")

    specs = [
        record("token_ids", "<u4"),
        record("byte_starts", "<u4"),
        record("byte_lengths", "<u2"),
        record("token_logprob", "<u2"),
        record("entry_count", "<u2"),
        record("tail_logmass", "<u2"),
        record("entropy", "<u2"),
        entry("entry_logprobs", "<u2"),
        sequence("sequence_records"),
        sequence("sequence_entries"),
    ]
    if spec.has_ids:
        specs.append(entry("entry_ids", "<u4"))
    if spec.temperatures:
        specs.append(record("lognorm", "<f4", len(spec.temperatures)))
    if spec.has_logit_std:
        specs += [record("logit_std", "<f4"), record("lognorm_std", "<f4")]
    if spec.draws and spec.layout == 1:
        specs += [
            record("draw_count", "<u2"),
            draw("sample_ids", "<u4", "bitshuffle"),
            draw("sample_counts", "|u1", "bitshuffle"),
            sequence("sequence_draws"),
        ]
    elif spec.draws:
        specs += [
            record("draw_total", "<u2"),
            draw("sample_gaps", "<u4", "shuffle"),
            draw("sample_counts", "<u2", "shuffle"),
            sequence("sequence_draws"),
        ]
    return specs


def check_cost(readers: Mapping[str, ArrayReader], offsets: Mapping[str, Array], i: int) -> None:
    """Refuse sequence i if a few bytes say that they are many megabytes of zeros.

    Raises:
        ValueError: They do.
    """
    decoded = stored = 0
    for name, reader in readers.items():
        if name not in offsets:
            start, stop = offsets[axis_of(name)][i : i + 2]
            cost = reader.cost(int(start), int(stop))
            decoded, stored = decoded + cost[0], stored + cost[1]
    check_ratio(decoded, stored)


def offsets_of(lengths: Sequence[int] | Array) -> Array:
    """Where each begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype(np.uint64)


def sums_of(values: Array, lengths: I64) -> I64:
    """Sums of consecutive parts of so many values each; 0 for an empty part."""
    if len(lengths) == 1:  # one sequence, read by itself
        return np.array([values.sum(dtype=np.int64)])
    running = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    stops = np.cumsum(lengths)
    return np.asarray(running[stops] - running[stops - lengths], np.int64)


def pack_starts(starts: Array, lengths: Array, records: I64) -> Array:
    """Distance of each record's start from the end before it in its sequence; mostly zeros.

    Args:
        starts: (n,) bytes before each record.
        lengths: (n,) its bytes.
        records: Records of each sequence.
    """
    ends = np.concatenate([[0], (starts + lengths)[:-1]])
    ends[(np.cumsum(records) - records)[records > 0]] = 0
    if (starts < ends).any():
        raise ValueError("the byte spans of a sequence overlap or run backwards")
    return np.asarray(starts - ends, np.uint32)


def unpack_starts(gaps: Array, lengths: I64, records: I64) -> I64:
    """The reverse of `pack_starts`."""
    reach = gaps.astype(np.int64) + lengths
    stops = np.cumsum(reach)
    before = np.concatenate([[0], stops])[np.cumsum(records) - records]
    return np.asarray(stops - lengths - np.repeat(before, records), np.int64)


def pack_draws(count: Array, ids: Array, times: Array) -> dict[str, Array]:
    """The arrays of the second layout from distinct draws of each record, ids and counts."""
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
    """The reverse of `pack_draws`: distinct draws of each record, ids, counts.

    Raises:
        ValueError: The counts do not add up, or an id is none.
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
        "draw_count": count,
        "sample_ids": ids.astype(np.uint32),
        "sample_counts": times.astype(np.uint8),
    }
