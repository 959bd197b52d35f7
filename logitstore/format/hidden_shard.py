"""Encode and open the file with a shard's hidden states: another archive of the same profile.

    hidden/00000-<16 digits>.zarr.zip     the digits begin the SHA-256 that the shard pins it by
      zarr.json                           group; its attributes say whose states these are
      <array>/zarr.json, <array>/c/0/0

Its members are arrays as a shard's are, each chunk with a checksum:

    sequence_states      [S+1] u64   where the states of each sequence lie
    state_ids            [T] u32     the token that was read last at each state
    last, last_scale     [T, D], [T] f32
    places               [n] u32     with context: the state of each record, within its sequence
    sequence_records     [S+1] u64   with context: where those lie
    embedding_ids        [E] u32     with embeddings: distinct tokens, ascending
    embedding, embedding_scale       [E, De], [E] f32

Chunks of rows have 64 KiB or a row, so that a sequence is read without its neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitstore.format.canonical_json import canonical_json, parse_json
from logitstore.format.hidden import EncodedStates, HiddenSpec, Rows
from logitstore.format.limits import MAX_RATIO
from logitstore.format.numpy_types import Array
from logitstore.format.shard_group import (
    GROUP_MEMBER,
    MAX_GROUP_BYTES,
    Members,
    ShardSize,
    group_of,
)
from logitstore.format.spec import FORMAT_VERSION, Plan, StoreSpec
from logitstore.format.zarr_arrays import ArrayReader, ArraySpec, array_metadata, encode_array
from logitstore.format.zip_archive import Archive
from logitstore.storage.files import Buffer

_CHUNK_BYTES = 64 * 1024
_CHUNK_NUMBERS = 1024
_MAX_ROWS = 2**32 - 1


@dataclass(frozen=True)
class HiddenSize:
    """The numbers of sequences, records, states and embeddings in a file."""

    sequences: int
    records: int
    states: int
    embeddings: int


def hidden_arrays(hidden: HiddenSpec, size: HiddenSize) -> list[ArraySpec]:
    """List the arrays of a file with hidden states."""
    specs = [
        _numbers("sequence_states", "<u8", size.sequences + 1),
        _numbers("state_ids", "<u4", size.states),
        *_rows("last", hidden, size.states, hidden.width),
    ]
    if hidden.context:
        specs += [
            _numbers("sequence_records", "<u8", size.sequences + 1),
            _numbers("places", "<u4", size.records),
        ]
    if hidden.embedding_width is not None:
        specs += [
            _numbers("embedding_ids", "<u4", size.embeddings),
            *_rows("embedding", hidden, size.embeddings, hidden.embedding_width),
        ]
    return specs


def _numbers(name: str, dtype: str, length: int) -> ArraySpec:
    return ArraySpec(name, np.dtype(dtype), (length,), _CHUNK_NUMBERS)


def _rows(name: str, hidden: HiddenSpec, length: int, width: int) -> list[ArraySpec]:
    rows_of_chunk = max(1, _CHUNK_BYTES // (width * hidden.code_type.itemsize))
    found = [ArraySpec(name, hidden.code_type, (length, width), rows_of_chunk)]
    return [*found, _numbers(f"{name}_scale", "<f4", length)] if hidden.has_scales else found


def build_sidecar(
    spec: StoreSpec,
    plan: Plan,
    index: int,
    records: Sequence[int],
    states: Sequence[EncodedStates | None],
) -> dict[str, Buffer]:
    """Build the members of a file with a shard's hidden states, ready for `zip_archive.pack`.

    Args:
        spec: The store's, with hidden states.
        plan: The store's.
        index: The shard's number.
        records: How many records each of its sequences has.
        states: The states of each; None for one without records.

    Raises:
        ValueError: A sequence has records and no states, or others than the spec says.
    """
    hidden = spec.hidden
    assert hidden is not None
    _check(hidden, records, states)
    arrays = _arrays(hidden, records, states)
    size = HiddenSize(
        len(records), sum(records), len(arrays["state_ids"]), len(arrays.get("embedding_ids", ()))
    )
    about = _about(spec, plan, index, size)
    members: dict[str, Buffer] = {GROUP_MEMBER: canonical_json(group_of(about))}
    for each in hidden_arrays(hidden, size):
        members[each.metadata_member] = array_metadata(each)
        if each.chunk_count:
            members[each.data_member] = _encoded(each, arrays[each.name])
    return members


def _check(
    hidden: HiddenSpec, records: Sequence[int], states: Sequence[EncodedStates | None]
) -> None:
    for count, each in zip(records, states, strict=True):
        if each is None:
            if count:
                raise ValueError(f"{count} records without hidden states, which the store holds")
            continue
        is_whole = len(each) == count if each.places is None else len(each.places) == count
        if not is_whole or (each.places is not None) != hidden.context:
            raise ValueError(f"{len(each)} hidden states are not those of {count} records")
        if each.last.codes.shape[1:] != (hidden.width,):
            raise ValueError(f"hidden states are not {hidden.width} numbers wide")


def _arrays(
    hidden: HiddenSpec, records: Sequence[int], states: Sequence[EncodedStates | None]
) -> dict[str, Array]:
    there = [each for each in states if each is not None]
    last = Rows.joined([Rows.none(hidden, hidden.width), *(each.last for each in there)])
    arrays: dict[str, Array] = {
        "sequence_states": _offsets([0 if each is None else len(each) for each in states]),
        "state_ids": np.concatenate([np.zeros(0, np.uint32), *(each.ids for each in there)]),
        **_named("last", last),
    }
    if hidden.context:
        places = [each.places for each in there if each.places is not None]
        arrays["sequence_records"] = _offsets(records)
        arrays["places"] = np.concatenate([np.zeros(0, np.uint32), *places])
    if hidden.embedding_width is not None:
        ids, rows = _table(hidden.embedding_width, hidden, there)
        arrays |= {"embedding_ids": ids, **_named("embedding", rows)}
    return arrays


def _table(width: int, hidden: HiddenSpec, there: Sequence[EncodedStates]) -> tuple[Array, Rows]:
    """Put each token's embedding once: those of all sequences are rows of one table."""
    ids = [np.zeros(0, np.uint32), *(e.embedding_ids for e in there if e.embedding_ids is not None)]
    rows = [Rows.none(hidden, width), *(e.embedding for e in there if e.embedding is not None)]
    distinct, first = np.unique(np.concatenate(ids), return_index=True)
    return distinct, Rows.joined(rows)[first]


def _named(name: str, rows: Rows) -> dict[str, Array]:
    scale = {} if rows.scale is None else {f"{name}_scale": rows.scale}
    return {name: rows.codes, **scale}


def _offsets(lengths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype(np.uint64)


def _encoded(spec: ArraySpec, values: Array) -> bytes:
    """Encode an array; uncompressed where a chunk would look like a bomb to its reader."""
    coded = encode_array(spec, values)
    reader, length = ArrayReader(spec, memoryview(coded)), len(values)
    for start in range(0, length, spec.chunk_length):
        cost = reader.cost(start, min(start + spec.chunk_length, length))
        if cost.decoded > MAX_RATIO * cost.stored:
            return encode_array(spec, values, copy=True)
    return coded


def _about(spec: StoreSpec, plan: Plan, index: int, size: HiddenSize) -> dict[str, Any]:
    return {
        "version": FORMAT_VERSION,
        "content_sha256": spec.digest,
        "plan_sha256": plan.digest,
        "shard": index,
        "rows": list(plan.shard_rows(index)),
        "size": vars(size),
    }


def read_hidden_group(
    archive: Members, spec: StoreSpec, plan: Plan, index: int, shard: ShardSize
) -> HiddenSize:
    """Read how much a file holds, checked against spec, plan and the shard that it lies beside.

    Raises:
        ValueError: It is another store's, another shard's, or not what was written.
        CorruptStoreError: Its bytes are damaged.
    """
    member = archive.members.get(GROUP_MEMBER)
    if member is None or member.size > MAX_GROUP_BYTES:
        raise ValueError(f"{GROUP_MEMBER} is not that of hidden states")
    raw = archive.check_member(GROUP_MEMBER)
    try:
        size = HiddenSize(**parse_json(bytes(raw))["attributes"]["logitstore"]["size"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{GROUP_MEMBER} is not that of hidden states") from None
    if not all(type(n) is int and 0 <= n <= _MAX_ROWS for n in vars(size).values()):
        raise ValueError("it says it holds a number of states that cannot be")
    if raw != canonical_json(group_of(_about(spec, plan, index, size))):
        raise ValueError("it is of another store, shard or rows")
    if (size.sequences, size.records) != (shard.sequences, shard.records):
        raise ValueError("it is of other records than the shard's")
    hidden = spec.hidden
    assert hidden is not None
    if hidden.embedding_width is None and size.embeddings:
        raise ValueError(f"it cannot hold {size.embeddings} embeddings")
    if not hidden.context and size.states != size.records:
        raise ValueError(f"{size.states} states cannot be those of {size.records} records")
    return size


def open_hidden_arrays(
    archive: Archive, hidden: HiddenSpec, size: HiddenSize
) -> Mapping[str, ArrayReader]:
    """Open the arrays that have elements, each checked against the metadata that it must have.

    Raises:
        ValueError: A member is missing, unknown, or not what the store's spec says.
    """
    specs = hidden_arrays(hidden, size)
    expected = {GROUP_MEMBER, *(s.metadata_member for s in specs)}
    expected |= {s.data_member for s in specs if s.chunk_count}
    if set(archive.names) != expected:
        odd = sorted(set(archive.names) ^ expected)
        raise ValueError(f"its members are not those of hidden states: {', '.join(odd[:5])}")
    for each in specs:
        text, wanted = archive[each.metadata_member], array_metadata(each)
        if len(text) != len(wanted) or bytes(text) != wanted:
            raise ValueError(f"{each.metadata_member} does not describe the array it must")
    return {s.name: ArrayReader(s, archive[s.data_member]) for s in specs if s.chunk_count}
