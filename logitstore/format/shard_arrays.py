"""Encode and open all arrays of a shard (`fields.py` lists them).

Records, entries and draws are three axes. Where a sequence lies on each is in `sequence_records`,
`sequence_entries` and `sequence_draws`, here called its offsets: sequence i lies from value i up to
value i + 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from logitstore.format.chunk_codecs import INSTEAD_OF_PCODEC, PCODEC_TYPES
from logitstore.format.fields import AXIS, ENTRIES, OFFSETS, RECORDS, SEQUENCES, arrays_of
from logitstore.format.limits import FREE_BYTES, total
from logitstore.format.numpy_types import I64, Array
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.shard_group import GROUP_MEMBER, ShardSize
from logitstore.format.spec import StoreSpec
from logitstore.format.zarr_arrays import ArrayReader, ArraySpec, array_metadata, encode_array
from logitstore.format.zip_archive import Archive
from logitstore.storage.file_bytes import FileBytes

_SEQUENCES_PER_CHUNK = 1024
_OFFSET_NAMES = frozenset(array.name for array in OFFSETS.values())


def array_specs(spec: StoreSpec, size: ShardSize) -> list[ArraySpec]:
    """List the arrays of a shard as zarr arrays: shape, type, chunks and coding."""
    per_record, per_entry = (int(spec.codec[f"{axis}_per_chunk"]) for axis in (RECORDS, ENTRIES))
    chunk_of = {SEQUENCES: _SEQUENCES_PER_CHUNK, RECORDS: per_record}
    is_compact = spec.codec["name"] == "compact"
    specs = []
    for array in arrays_of(spec):
        dtype = np.dtype(array.dtype)
        length = vars(size)[array.axis] + (array.axis == SEQUENCES)
        shape = (length, len(spec.temperatures)) if array.is_per_temperature else (length,)
        coding = array.compact if is_compact and dtype.name in PCODEC_TYPES else array.shuffle
        chunk = chunk_of.get(array.axis, per_entry)
        specs.append(ArraySpec(array.name, dtype, shape, chunk, coding))
    return specs


def encode_arrays(
    spec: StoreSpec, size: ShardSize, arrays: Mapping[str, Array], offsets: Mapping[str, Array]
) -> dict[str, bytes]:
    """Encode the members of all arrays of a shard.

    Readers reject a few bytes that declare many megabytes. If a sequence compresses that well, all
    arrays are written uncompressed, by blosc in any store.

    Args:
        spec: The store's.
        size: The shard's.
        arrays: Values by name, in stored form; arrays that are not given have no elements.
        offsets: Where sequences lie, by axis.
    """
    arrays = {**arrays, **{OFFSETS[axis].name: values for axis, values in offsets.items()}}
    specs = array_specs(spec, size)
    if spec.layout == 2:
        specs = [_smaller(s, arrays[s.name]) if _may_choose(s) else s for s in specs]
    coded = {s.name: encode_array(s, arrays[s.name]) for s in specs if s.chunk_count}
    if _has_bomb(specs, coded, offsets):
        specs = [s if s.name in _OFFSET_NAMES else _copied(s) for s in specs]
        for s in specs:
            if s.name not in _OFFSET_NAMES and s.chunk_count:
                coded[s.name] = encode_array(s, arrays[s.name], copy=True)
    members = {s.metadata_member: array_metadata(s) for s in specs}
    return members | {s.data_member: coded[s.name] for s in specs if s.chunk_count}


def _may_choose(spec: ArraySpec) -> bool:
    return spec.name == "entry_ids" and spec.coding == "bitshuffle" and spec.chunk_count > 0


def _smaller(spec: ArraySpec, values: Array) -> ArraySpec:
    """Choose blosc's shuffle of bits or of bytes, whichever makes the first chunk smaller.

    Bytes are better where some ids are far more frequent than others, as in most text; bits where
    a large vocabulary is used evenly.
    """
    first = replace(spec, shape=(min(spec.chunk_length, len(values)),))
    others = [replace(first, coding=coding) for coding in ("bitshuffle", "shuffle")]
    best = min(others, key=lambda one: len(encode_array(one, values[: one.shape[0]])))
    return replace(spec, coding=best.coding)


def _has_bomb(
    specs: Sequence[ArraySpec], coded: Mapping[str, bytes], offsets: Mapping[str, Array]
) -> bool:
    """Tell whether readers would reject a sequence of these arrays."""
    readers = {s.name: ArrayReader(s, memoryview(coded[s.name])) for s in specs if s.chunk_count}
    most: Array = np.zeros(len(offsets[RECORDS]) - 1, np.int64)
    for axis, o in offsets.items():
        width, chunk = widths(specs, axis)
        lengths = np.diff(o.astype(np.int64))
        most = most + (lengths + 2 * chunk * (lengths > 0)) * width
    try:
        for i in np.flatnonzero(most > FREE_BYTES):
            check_cost(readers, offsets, int(i))
    except ValueError:
        return True
    return False


def widths(specs: Iterable[ArraySpec], axis: str) -> tuple[int, int]:
    """Add up the bytes of all arrays for a step along an axis; find the length of their chunks."""
    own = [s for s in specs if AXIS.get(s.name) == axis and s.name not in _OFFSET_NAMES]
    return sum(s.row_bytes for s in own), max((s.chunk_length for s in own), default=0)


def _copied(spec: ArraySpec) -> ArraySpec:
    return replace(spec, coding=INSTEAD_OF_PCODEC.get(spec.coding, spec.coding))


def open_arrays(archive: Archive, spec: StoreSpec, size: ShardSize) -> dict[str, ArrayReader]:
    """Open the arrays that have elements, each checked against the metadata that it must have.

    Raises:
        ValueError: A member is missing, unknown, or not what the store's spec says.
    """
    specs = array_specs(spec, size)
    expected = {GROUP_MEMBER, LINES_MEMBER, *(s.metadata_member for s in specs)}
    expected |= {s.data_member for s in specs if s.chunk_count}
    if set(archive.names) != expected:
        odd = sorted(set(archive.names) ^ expected)
        raise ValueError(f"its members are not those of this store: {', '.join(odd[:5])}")
    specs = [_recognised(s, archive[s.metadata_member], spec.layout) for s in specs]
    return {s.name: ArrayReader(s, archive[s.data_member]) for s in specs if s.chunk_count}


def _recognised(spec: ArraySpec, text: FileBytes, layout: int) -> ArraySpec:
    """Find the spec that the metadata is of: an array may have one of two codings."""
    others = [spec]
    if spec.coding in INSTEAD_OF_PCODEC:
        others.append(_copied(spec))
    elif layout == 2 and spec.name == "entry_ids":
        others.append(replace(spec, coding="shuffle"))
    known = {array_metadata(one): one for one in others}
    if len(text) <= max(map(len, known)) and (one := known.get(bytes(text))):
        return one
    raise ValueError(f"{spec.metadata_member} does not describe the array it must")


def read_offsets(arrays: Mapping[str, ArrayReader], size: ShardSize) -> dict[str, I64]:
    """Read where sequences lie on each axis that the shard has.

    Raises:
        ValueError: They are damaged, or do not divide the shard among its sequences.
    """
    named = {axis: arrays.get(array.name) for axis, array in OFFSETS.items()}
    return {a: read_offsets_of(a, reader, size) for a, reader in named.items() if reader}


def read_offsets_of(axis: str, reader: ArrayReader, size: ShardSize) -> I64:
    """Read where sequences lie on one axis.

    Raises:
        ValueError: They are damaged, or do not divide the shard among its sequences.
    """
    offsets = reader[slice(0, size.sequences + 1)].astype(np.int64)
    total = vars(size)[axis]
    if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise ValueError(f"{OFFSETS[axis].name} does not divide {total} {axis} among the sequences")
    return offsets


def check_cost(readers: Mapping[str, ArrayReader], offsets: Mapping[str, Array], i: int) -> None:
    """Reject sequence i if a few bytes declare that they are many megabytes.

    Args:
        readers: Readers of arrays by name; those of offsets are ignored.
        offsets: Where sequences lie, by axis.
        i: Which sequence.

    Raises:
        ValueError: It is such a bomb.
    """
    costs = []
    for name, reader in readers.items():
        if name not in _OFFSET_NAMES:
            start, stop = offsets[AXIS[name]][i : i + 2]
            costs.append(reader.cost(int(start), int(stop)))
    total(costs).check()
