"""Decode sequences from the arrays of a shard: any number at once, each chunk decoded once.

Decoding is arithmetic on whole arrays (sums, running sums, one table), and each call to numpy costs
a microsecond or two before it does anything. So the records of all sequences asked for are gathered
into one array a field, decoded together, and returned as slices.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from logitstore.format.distances import sums_of, unpack
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import (
    AXIS,
    DRAWS,
    ENTRIES,
    FIELD,
    HEAD,
    RECORDS,
    SEQUENCES,
    arrays_of,
    decode_fields,
)
from logitstore.format.limits import FREE_BYTES
from logitstore.format.numpy_types import I64, Array
from logitstore.format.shard_arrays import array_specs, check_cost, widths
from logitstore.format.shard_group import ShardSize
from logitstore.format.spec import StoreSpec
from logitstore.format.zarr_arrays import ArrayReader
from logitstore.records import Entries, TokenRecords


class SequenceReader:
    """A decoder of sequences of one shard."""

    def __init__(
        self,
        spec: StoreSpec,
        size: ShardSize,
        arrays: Mapping[str, ArrayReader],
        offsets: Mapping[str, I64],
    ) -> None:
        """Take the open arrays of a shard.

        Args:
            spec: The store's.
            size: The shard's.
            arrays: Readers of all arrays that have elements, by name.
            offsets: Where sequences lie, by axis.
        """
        self._arrays, self._offsets, self._missing = arrays, offsets, spec.missing
        self._empty = {
            s.name: np.zeros((0, *s.shape[1:]), s.dtype) for s in array_specs(spec, size)
        }
        self._names = [a.name for a in arrays_of(spec) if a.axis != SEQUENCES]
        self._not_head = [name for name in self._names if name not in HEAD]
        self._ids = [name for name in self._not_head if name == "entry_ids"]
        self._values = {name: r for name, r in arrays.items() if AXIS[name] != SEQUENCES}
        specs = [reader.spec for reader in self._values.values()]
        self._widths = {axis: widths(specs, axis) for axis in offsets}

    def records(self, places: Sequence[int]) -> list[TokenRecords]:
        """Decode the sequences at some places, which must ascend.

        Raises:
            ValueError: Bytes that one of them needs are damaged.
        """
        read = _Gathered(self, places)
        decoded = read.decoded(HEAD) | read.decoded(self._not_head, self._missing)
        return [TokenRecords(**one) for one in read.split(decoded, FIELD)]

    def entries(self, places: Sequence[int]) -> list[Entries]:
        """Decode the entries of sequences without the rest of their records, as `records` does."""
        read = _Gathered(self, places)
        decoded = read.decoded(HEAD) | read.decoded(self._ids)
        return [Entries(**one) for one in read.split(decoded, Entries._fields)]

    def encoded(self, places: Sequence[int]) -> list[EncodedRecords]:
        """Read sequences in encoded form, with all the checks of `records`."""
        self.records(places)
        fields_of = [_Gathered(self, [i]).encoded(self._names) for i in places]
        return [EncodedRecords.unmeasured(fields) for fields in fields_of]

    def gather(self, name: str, spans: Sequence[tuple[int, int]]) -> Array:
        """Read the rows of one array in some spans."""
        reader = self._arrays.get(name)  # an array without elements has no member
        return self._empty[name] if reader is None else reader.gather(spans)

    def spans(self, axis: str, places: Sequence[int]) -> list[tuple[int, int]]:
        """Find where sequences lie on an axis."""
        offsets = self._offsets[axis]
        return [(offsets.item(i), offsets.item(i + 1)) for i in places]

    def check_cost(self, i: int) -> None:
        """Reject a sequence that is a decompression bomb, before it is decoded.

        Raises:
            ValueError: A few bytes declare that they are many megabytes.
        """
        decoded = 0
        for axis, offsets in self._offsets.items():
            width, chunk = self._widths[axis]
            length = offsets.item(i + 1) - offsets.item(i)
            decoded += (length + 2 * chunk) * width if length else 0
        if decoded > FREE_BYTES:  # which chunks they are makes a difference
            check_cost(self._values, self._offsets, i)


class _Gathered:
    """The fields of several sequences, one after the other."""

    def __init__(self, reader: SequenceReader, places: Sequence[int]) -> None:
        for i in places:
            reader.check_cost(i)
        self._reader, self._places = reader, places
        self._spans: dict[str, list[tuple[int, int]]] = {}
        self._lengths: dict[str, I64] = {}
        self._cuts_of: dict[str, list[tuple[int, int]]] = {}

    def encoded(self, names: Iterable[str]) -> dict[str, Array]:
        """Read arrays, and turn distances back into values.

        Raises:
            ValueError: Their bytes are damaged, or they cannot belong together.
        """
        fields = unpack({name: self._read(name) for name in names}, self._length(RECORDS))
        for name, axis in (("entry_count", ENTRIES), ("draw_count", DRAWS)):
            if name in fields:
                self._check_counts(fields[name], axis)
        return fields

    def decoded(self, names: Iterable[str], missing: Collection[str] = ()) -> dict[str, Array]:
        """Read arrays and decode them immediately, while they are in the processor's cache."""
        return decode_fields(self.encoded(names), missing)

    def split(self, fields: Mapping[str, Array], names: Iterable[str]) -> list[dict[str, Any]]:
        """Cut fields into those of each sequence; None for names that are not given."""
        if len(self._places) == 1:
            return [{name: fields.get(name) for name in names}]
        sequences: list[dict[str, Any]] = [dict.fromkeys(names) for _ in self._places]
        for name, values in fields.items():
            for sequence, (start, stop) in zip(sequences, self._cuts(AXIS[name]), strict=True):
                sequence[name] = values[start:stop]
        return sequences

    def _read(self, name: str) -> Array:
        axis = AXIS[name]
        if axis not in self._spans:
            self._spans[axis] = self._reader.spans(axis, self._places)
        return self._reader.gather(name, self._spans[axis])

    def _length(self, axis: str) -> I64:
        """Count the records, entries or draws of each sequence."""
        if axis not in self._lengths:
            spans = self._reader.spans(axis, self._places)
            self._lengths[axis] = np.array([b - a for a, b in spans], np.int64)
        return self._lengths[axis]

    def _cuts(self, axis: str) -> list[tuple[int, int]]:
        """Find where each sequence lies in what was gathered along an axis."""
        if axis not in self._cuts_of:
            stops = np.cumsum(self._length(axis)).tolist()
            self._cuts_of[axis] = list(pairwise([0, *stops]))
        return self._cuts_of[axis]

    def _check_counts(self, count: Array, axis: str) -> None:
        """Check that the counts of records add up to what each sequence has along an axis."""
        sums, held = sums_of(count, self._length(RECORDS)), self._length(axis)
        if not np.array_equal(sums, held):
            worst = int(np.flatnonzero(sums != held)[0])
            raise ValueError(
                f"sequence {self._places[worst]} has {held[worst]} {axis}, its records have "
                f"{sums[worst]}"
            )
