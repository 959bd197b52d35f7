"""Build all members of a shard from its sequences: text, arrays, and the group's metadata."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logitstore.format.canonical_json import canonical_json
from logitstore.format.distances import pack
from logitstore.format.encoded import NOTHING_MEASURED, EncodedRecords, measure
from logitstore.format.fields import OFFSETS, RECORDS
from logitstore.format.numpy_types import Array
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.rows_parquet import encode_lines
from logitstore.format.shard_arrays import encode_arrays
from logitstore.format.shard_group import GROUP_MEMBER, HIDDEN, ShardSize, group_of
from logitstore.format.spec import FORMAT_VERSION, Plan, StoreSpec
from logitstore.records import SequenceText
from logitstore.storage.files import Buffer


def build_shard(
    spec: StoreSpec,
    plan: Plan,
    index: int,
    sequences: Sequence[tuple[SequenceText, EncodedRecords | None]],
    kept_fidelity: Mapping[str, float | int] | None = None,
    hidden: Mapping[str, Any] | None = None,
) -> dict[str, Buffer]:
    """Build the members of a shard, ready for `zip_archive.pack`.

    Args:
        spec: The store's.
        plan: The store's.
        index: The shard's number.
        sequences: All of the shard's rows in order, each with its records or None.
        kept_fidelity: The coding error measured when the records were first encoded, if they come
            from another store; default: measured here.
        hidden: Which file has its hidden states: `sha256` and `bytes`; None: there are none.
    """
    offsets = _offsets([encoded for _, encoded in sequences])
    size = ShardSize(len(sequences), **{axis: int(o[-1]) for axis, o in offsets.items()})
    arrays: dict[str, Array] = {}
    fidelity = dict(kept_fidelity or NOTHING_MEASURED)
    parts = [encoded for _, encoded in sequences if encoded is not None]
    if parts:
        whole = EncodedRecords.concatenate(parts)
        fidelity = fidelity if kept_fidelity is not None else measure(whole, spec)
        records = np.diff(offsets[RECORDS].astype(np.int64))
        arrays = pack(whole.fields, spec, np.asarray(records, np.int64))

    lines = [line for line, _ in sequences]
    members: dict[str, Buffer] = {LINES_MEMBER: memoryview(encode_lines(lines))}
    members |= encode_arrays(spec, size, arrays, offsets)
    about = _about(spec, plan, index, size, fidelity, lines)
    if hidden is not None:
        about[HIDDEN] = dict(hidden)
    members[GROUP_MEMBER] = canonical_json(group_of(about))
    return members


def _offsets(encoded: Sequence[EncodedRecords | None]) -> dict[str, Array]:
    """Find where each sequence lies on each axis, and where the last ends."""
    offsets = {}
    for axis in OFFSETS:
        lengths = [0 if e is None else e.total(axis) for e in encoded]
        running = np.cumsum(lengths, dtype=np.uint64)
        offsets[axis] = np.concatenate([[0], running]).astype(np.uint64)
    return offsets


def _about(
    spec: StoreSpec,
    plan: Plan,
    index: int,
    size: ShardSize,
    fidelity: dict[str, float | int],
    lines: Sequence[SequenceText],
) -> dict[str, Any]:
    statuses: dict[str, int] = {}
    for line in lines:
        statuses[line.status] = statuses.get(line.status, 0) + 1
    return {
        "version": FORMAT_VERSION,
        "content_sha256": spec.digest,
        "plan_sha256": plan.digest,
        "shard": index,
        "rows": list(plan.shard_rows(index)),
        "size": vars(size),
        "fidelity": fidelity,
        "statuses": statuses,
        "supervised_bytes": sum(len(line.supervised_bytes) for line in lines),
    }
