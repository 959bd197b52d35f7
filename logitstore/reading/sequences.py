"""Sequences out of the arrays of a shard: any number at once, each chunk decoded once.

Decoding is arithmetic on whole arrays (sums, running sums, one table), and each call of numpy's
costs a microsecond or two before it does anything. So the records of all sequences asked for are
gathered into one array a field, decoded together, and handed out as slices.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from logitstore.format.encoded import EncodedRecords
from logitstore.format.limits import FREE_BYTES
from logitstore.format.logprob_codec import (
    NEG_INF_CODE,
    TOKEN_STEP,
    decode_entries,
    dequantise,
    dequantise_entropy,
)
from logitstore.format.shard_arrays import (
    I64,
    Array,
    array_specs,
    axis_of,
    check_cost,
    sums_of,
    unpack_draws,
    unpack_starts,
)
from logitstore.format.shard_group import ShardSize
from logitstore.format.spec import StoreSpec
from logitstore.format.zarr_arrays import ArrayReader
from logitstore.records import Entries, TokenRecords

_PLAIN = ("lognorm", "logit_std", "lognorm_std")


class SequenceReader:
    """Decodes sequences of one shard."""

    def __init__(
        self,
        spec: StoreSpec,
        size: ShardSize,
        arrays: Mapping[str, ArrayReader],
        offsets: Mapping[str, I64],
    ) -> None:
        """Of a shard whose arrays are open.

        Args:
            spec: The store's.
            size: The shard's.
            arrays: Readers of all arrays that have elements.
            offsets: Where sequences lie on each axis (`layout.axis_of`).
        """
        self._spec, self._arrays, self._offsets = spec, arrays, offsets
        self._empty = {
            s.name: np.zeros((0, *s.shape[1:]), s.dtype) for s in array_specs(spec, size)
        }
        self._values = {name: r for name, r in arrays.items() if name not in offsets}
        self._widths = {axis: self._width(axis) for axis in offsets}

    def records(self, places: Sequence[int]) -> list[TokenRecords]:
        """Sequences by position, which must ascend.

        Raises:
            ValueError: Bytes that one of them needs are damaged.
        """
        read = _Gathered(self, places)
        fields = read.entries() | read.scalars() | read.optional()
        return [TokenRecords(**one) for one in read.split(fields)]

    def entries(self, places: Sequence[int]) -> list[Entries]:
        """The entries alone, likewise."""
        read = _Gathered(self, places)
        return [Entries(**one) for one in read.split(read.entries())]

    def encoded(self, i: int) -> EncodedRecords:
        """One sequence as it is stored, but for what is stored as distances."""
        read = _Gathered(self, [i])
        per_record, per_entry, per_draw = read.stored()
        nothing = np.zeros(len(per_record["byte_lengths"]), np.float32)
        none_dropped = np.zeros(len(nothing), np.int64)
        return EncodedRecords(per_record, per_entry, per_draw, nothing, nothing, none_dropped)

    def gather(self, name: str, spans: Sequence[tuple[int, int]]) -> Array:
        """Rows of one array."""
        reader = self._arrays.get(name)  # an array without elements has no member
        return self._empty[name] if reader is None else reader.gather(spans)

    def spans(self, axis: str, places: Sequence[int]) -> list[tuple[int, int]]:
        """Where sequences lie on an axis."""
        offsets = self._offsets[axis]
        return [(offsets.item(i), offsets.item(i + 1)) for i in places]

    def check_cost(self, i: int) -> None:
        """Refuse a bomb before it is decoded; what is small is none."""
        decoded = sum(
            int(o[i + 1] - o[i]) * self._widths[axis] for axis, o in self._offsets.items()
        )
        if decoded > FREE_BYTES:
            check_cost(self._values, self._offsets, i)

    def _width(self, axis: str) -> int:
        """Decoded bytes of all arrays for one step along an axis."""
        return sum(r.spec.row_bytes for name, r in self._values.items() if axis_of(name) == axis)

    @property
    def spec(self) -> StoreSpec:
        return self._spec


class _Gathered:
    """The fields of several sequences, one after the other."""

    def __init__(self, reader: SequenceReader, places: Sequence[int]) -> None:
        for i in places:
            reader.check_cost(i)
        self._reader, self._places = reader, places
        self._spans: dict[str, list[tuple[int, int]]] = {}
        self._lengths: dict[str, I64] = {}

    def entries(self) -> dict[str, Array | None]:
        """Fields of `Entries`."""
        count = self._of("entry_count").astype(np.int64)
        self._check_counts(count, "entry_logprobs", "entries")
        logprobs, tail = decode_entries(self._of("entry_logprobs"), count, self._of("tail_logmass"))
        return {
            "entry_count": count,
            "entry_ids": self._of("entry_ids") if self._reader.spec.has_ids else None,
            "entry_logprobs": logprobs,
            "tail_logmass": tail,
        }

    def scalars(self) -> dict[str, Array]:
        """What else every record has."""
        lengths = self._of("byte_lengths").astype(np.int64)
        records = self._length("byte_starts")
        return {
            "token_ids": self._of("token_ids"),
            "byte_starts": unpack_starts(self._of("byte_starts"), lengths, records),
            "byte_lengths": lengths,
            "token_logprob": self._token_logprob(),
            "entropy": self._entropy(),
        }

    def _token_logprob(self) -> Array:
        """NaN where the source of an import did not say it."""
        codes = self._of("token_logprob")
        found = dequantise(codes, TOKEN_STEP)
        if "token_logprob" in self._reader.spec.missing:
            found[codes == NEG_INF_CODE] = np.nan
        return found

    def _entropy(self) -> Array:
        """NaN where the source of an import did not say it."""
        codes = self._of("entropy")
        if "entropy" in self._reader.spec.missing:
            return np.full(len(codes), np.nan, np.float32)
        return dequantise_entropy(codes)

    def optional(self) -> dict[str, Array]:
        """What the spec says there is beyond that."""
        spec = self._reader.spec
        found: dict[str, Array] = {}
        if spec.temperatures:
            found["lognorm"] = self._of("lognorm")
        if spec.has_logit_std:
            found |= {name: self._of(name) for name in ("logit_std", "lognorm_std")}
        if spec.draws and spec.layout == 1:
            found["draw_count"] = self._of("draw_count").astype(np.int64)
            found |= {name: self._of(name) for name in ("sample_ids", "sample_counts")}
        elif spec.draws:
            names = ("draw_total", "sample_gaps", "sample_counts")
            found |= unpack_draws(*(self._of(name) for name in names))
        if spec.draws:
            self._check_counts(found["draw_count"], "sample_counts", "draws")
        return found

    def stored(self) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        """Fields of `EncodedRecords`: of records, of entries, of draws."""
        spec = self._reader.spec
        lengths = self._of("byte_lengths")
        starts = unpack_starts(
            self._of("byte_starts"), lengths.astype(np.int64), self._length("byte_starts")
        )
        names = ("token_ids", "token_logprob", "entry_count", "tail_logmass", "entropy")
        per_record = {name: self._of(name) for name in names}
        per_record |= {"byte_starts": starts, "byte_lengths": lengths}
        optional, per_draw = self.optional(), {}
        for name, values in optional.items():
            if name in ("sample_ids", "sample_counts"):
                per_draw[name] = values
            else:
                is_count = name == "draw_count"
                per_record[name] = values.astype(np.uint16) if is_count else values
        per_entry = {"entry_logprobs": self._of("entry_logprobs")}
        if spec.has_ids:
            per_entry["entry_ids"] = self._of("entry_ids")
        return per_record, per_entry, per_draw

    def split(self, fields: Mapping[str, Array | None]) -> list[dict[str, Any]]:
        """The fields of each sequence."""
        if len(self._places) == 1:
            return [dict(fields)]
        cuts = {
            name: np.concatenate([[0], np.cumsum(self._length(name))]).tolist() for name in fields
        }
        found: list[dict[str, Any]] = [{} for _ in self._places]
        for name, values in fields.items():
            for one, (start, stop) in zip(found, pairwise(cuts[name]), strict=True):
                one[name] = None if values is None else values[start:stop]
        return found

    def _of(self, name: str) -> Array:
        axis = axis_of(name)
        if axis not in self._spans:
            self._spans[axis] = self._reader.spans(axis, self._places)
        return self._reader.gather(name, self._spans[axis])

    def _length(self, name: str) -> I64:
        """How much each sequence has of a field."""
        axis = axis_of(name)
        if axis not in self._lengths:
            spans = self._reader.spans(axis, self._places)
            self._lengths[axis] = np.array([b - a for a, b in spans], np.int64)
        return self._lengths[axis]

    def _check_counts(self, count: I64, flat: str, what: str) -> None:
        sums, held = sums_of(count, self._length("entry_count")), self._length(flat)
        if not np.array_equal(sums, held):
            worst = int(np.flatnonzero(sums != held)[0])
            raise ValueError(
                f"sequence {self._places[worst]} has {held[worst]} {what}, its records have "
                f"{sums[worst]}"
            )
