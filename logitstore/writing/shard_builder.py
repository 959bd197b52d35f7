"""A shard built whole from its sequences: text, arrays, and what it says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from logitstore.format.canonical_json import canonical_json
from logitstore.format.chunk_codecs import INSTEAD_OF_PCODEC
from logitstore.format.encoded import NOTHING_MEASURED, EncodedRecords, measure
from logitstore.format.limits import FREE_BYTES
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.rows_parquet import encode_lines
from logitstore.format.shard_arrays import (
    Array,
    array_specs,
    check_cost,
    offsets_of,
    pack_draws,
    pack_starts,
)
from logitstore.format.shard_group import GROUP_MEMBER, ShardSize, group_of
from logitstore.format.spec import FORMAT_VERSION, Plan, StoreSpec
from logitstore.format.zarr_arrays import ArrayReader, ArraySpec, array_metadata, encode_array
from logitstore.records import SequenceText
from logitstore.storage.files import Buffer


def build_shard(
    spec: StoreSpec,
    plan: Plan,
    index: int,
    sequences: Sequence[tuple[SequenceText, EncodedRecords | None]],
    kept_fidelity: Mapping[str, float | int] | None = None,
) -> dict[str, Buffer]:
    """The members of a shard, ready for `archive.pack`.

    Args:
        spec: The store's.
        plan: The store's.
        index: Which shard.
        sequences: All of the shard's rows in order, each with its records or None.
        kept_fidelity: What was measured when its records were first encoded, where they come from
            another store; default: measured here.
    """
    parts = [encoded for _, encoded in sequences if encoded is not None]
    offsets = _offsets([encoded for _, encoded in sequences])
    totals = {name: int(o[-1]) for name, o in offsets.items()}
    size = ShardSize(
        len(sequences),
        totals["sequence_records"],
        totals["sequence_entries"],
        totals["sequence_draws"],
    )
    specs = array_specs(spec, size)
    arrays: dict[str, Array] = {s.name: np.zeros(s.shape, s.dtype) for s in specs}
    fidelity = dict(kept_fidelity or NOTHING_MEASURED)
    if parts:
        whole = EncodedRecords.concatenate(parts)
        fidelity = fidelity if kept_fidelity is not None else measure(whole, spec)
        arrays = _stored(whole, spec, offsets["sequence_records"])
    if spec.layout == 2:
        specs = [_smaller(s, arrays[s.name]) if s.name == "entry_ids" else s for s in specs]
    specs, coded = _encode_arrays(specs, arrays | offsets, offsets)

    lines = [line for line, _ in sequences]
    members: dict[str, Buffer] = {LINES_MEMBER: memoryview(encode_lines(lines))}
    members |= {s.metadata_member: array_metadata(s) for s in specs}
    members |= {s.data_member: coded[s.name] for s in specs if s.chunk_count}
    members[GROUP_MEMBER] = _group(spec, plan, index, size, fidelity, lines)
    return members


def _offsets(encoded: Sequence[EncodedRecords | None]) -> dict[str, Array]:
    """Where each sequence lies on each axis."""
    return {
        "sequence_records": offsets_of([0 if e is None else len(e) for e in encoded]),
        "sequence_entries": offsets_of([0 if e is None else e.entry_total for e in encoded]),
        "sequence_draws": offsets_of([0 if e is None else e.draw_total for e in encoded]),
    }


def _stored(whole: EncodedRecords, spec: StoreSpec, record_offsets: Array) -> dict[str, Array]:
    """Arrays by name, in the form in which they are stored."""
    arrays = {**whole.per_record, **whole.per_entry, **whole.per_draw}
    records = np.asarray(np.diff(record_offsets.astype(np.int64)), np.int64)
    arrays["byte_starts"] = pack_starts(arrays["byte_starts"], arrays["byte_lengths"], records)
    if spec.draws and spec.layout == 2:
        count, ids = arrays.pop("draw_count"), arrays.pop("sample_ids")
        arrays |= pack_draws(count, ids, arrays["sample_counts"])
    return arrays


def _encode_arrays(
    specs: Sequence[ArraySpec], arrays: dict[str, Array], offsets: dict[str, Array]
) -> tuple[list[ArraySpec], dict[str, bytes]]:
    """The data members, and their specs.

    A sequence that compresses like a bomb is copied, not compressed, by blosc in any store.
    """
    coded = {s.name: encode_array(s, arrays[s.name]) for s in specs if s.chunk_count}
    readers = {s.name: ArrayReader(s, memoryview(coded[s.name])) for s in specs if s.chunk_count}
    widest = sum(s.row_bytes for s in specs)
    lengths = sum(np.diff(o.astype(np.int64)) for o in offsets.values())
    try:
        for i in np.flatnonzero(lengths * widest > FREE_BYTES):
            check_cost(readers, offsets, int(i))
    except ValueError:
        specs = [_copied(s) if s.name not in offsets else s for s in specs]
        for s in specs:
            if s.name not in offsets and s.chunk_count:
                coded[s.name] = encode_array(s, arrays[s.name], copy=True)
    return list(specs), coded


def _smaller(spec: ArraySpec, values: Array) -> ArraySpec:
    """Blosc's shuffle of bits or of bytes, whichever makes the first chunk smaller.

    Bytes are better where some ids are far more frequent than others, as in most text; bits where
    a large vocabulary is used evenly.
    """
    if spec.coding != "bitshuffle" or not spec.chunk_count:
        return spec
    first = replace(spec, shape=(min(spec.chunk_length, len(values)),))
    others = [replace(first, coding=coding) for coding in ("bitshuffle", "shuffle")]
    best = min(others, key=lambda one: len(encode_array(one, values[: one.shape[0]])))
    return replace(spec, coding=best.coding)


def _copied(spec: ArraySpec) -> ArraySpec:
    return replace(spec, coding=INSTEAD_OF_PCODEC.get(spec.coding, spec.coding))


def _group(
    spec: StoreSpec,
    plan: Plan,
    index: int,
    size: ShardSize,
    fidelity: dict[str, float | int],
    lines: Sequence[SequenceText],
) -> bytes:
    statuses: dict[str, int] = {}
    for line in lines:
        statuses[line.status] = statuses.get(line.status, 0) + 1
    about = {
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
    return canonical_json(group_of(about))
