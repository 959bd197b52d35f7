"""One immutable shard: built whole from its sequences, read through a memory map.

00000.zarr.zip      (see archive.py for the bytes around the members)
  zarr.json                 group; its attributes say what the shard is and how much it holds
  <array>/zarr.json, <array>/c/0
  rows.parquet              the text, one line a sequence
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from logitstore.archive import Archive, Buffer
from logitstore.arrays import (
    ArrayReader,
    ArraySpec,
    array_metadata,
    canonical_json,
    encode_array,
)
from logitstore.codec import (
    NEG_INF_CODE,
    TAIL_STEP,
    TOKEN_STEP,
    decode_entries,
    dequantise,
    dequantise_entropy,
)
from logitstore.encode import NOTHING_MEASURED, EncodedRecords, measure
from logitstore.errors import CorruptStoreError
from logitstore.lines import MEMBER as LINES_MEMBER
from logitstore.lines import LinesReader, encode_lines
from logitstore.pages import FREE_BYTES, check_ratio
from logitstore.place import StorePath
from logitstore.records import SequenceText, TokenRecords
from logitstore.spec import FORMAT_VERSION, Plan, StoreSpec
from logitstore.untrusted import parse_json

GROUP_MEMBER = "zarr.json"
_MAX_GROUP_BYTES = 64 * 1024
_SEQUENCES_PER_CHUNK = 1024
_MAX_SIZE = 2**32 - 1
_ABOUT = {
    "version",
    "content_sha256",
    "plan_sha256",
    "shard",
    "rows",
    "size",
    "fidelity",
    "statuses",
    "supervised_bytes",
}
_AXIS = {
    "entry_logprobs": "sequence_entries",
    "entry_ids": "sequence_entries",
    "sample_ids": "sequence_draws",
    "sample_counts": "sequence_draws",
}

Array = npt.NDArray[Any]


class Members(Protocol):
    """An archive, or the end of one: see `archive.py` and `skim.py`."""

    @property
    def names(self) -> list[str]: ...
    def check_member(self, name: str) -> memoryview: ...


@dataclass(frozen=True)
class ShardSize:
    """How much a shard holds."""

    sequences: int
    records: int
    entries: int
    draws: int


def shard_name(index: int) -> str:
    """File name of a shard, below ``shards/``."""
    return f"{index:05d}.zarr.zip"


def array_specs(spec: StoreSpec, size: ShardSize) -> list[ArraySpec]:
    """Every array of a shard of this store, optional blocks as the spec says."""
    per_record = int(spec.codec["records_per_chunk"])
    per_entry = int(spec.codec["entries_per_chunk"])

    def record(name: str, dtype: str, *columns: int) -> ArraySpec:
        return ArraySpec(name, np.dtype(dtype), (size.records, *columns), per_record)

    def flat(name: str, dtype: str, length: int, chunk: int) -> ArraySpec:
        return ArraySpec(name, np.dtype(dtype), (length,), chunk)

    specs = [
        record("token_ids", "<u4"),
        record("byte_starts", "<u4"),
        record("byte_lengths", "<u2"),
        record("token_logprob", "<u2"),
        record("entry_count", "<u2"),
        record("tail_logmass", "<u2"),
        record("entropy", "<u2"),
        flat("entry_logprobs", "<u2", size.entries, per_entry),
        flat("sequence_records", "<u8", size.sequences + 1, _SEQUENCES_PER_CHUNK),
        flat("sequence_entries", "<u8", size.sequences + 1, _SEQUENCES_PER_CHUNK),
    ]
    if spec.has_ids:
        specs.append(flat("entry_ids", "<u4", size.entries, per_entry))
    if spec.temperatures:
        specs.append(record("lognorm", "<f4", len(spec.temperatures)))
    if spec.has_logit_std:
        specs += [record("logit_std", "<f4"), record("lognorm_std", "<f4")]
    if spec.draws:
        specs += [
            record("draw_count", "<u2"),
            flat("sample_ids", "<u4", size.draws, per_entry),
            flat("sample_counts", "|u1", size.draws, per_entry),
            flat("sequence_draws", "<u8", size.sequences + 1, _SEQUENCES_PER_CHUNK),
        ]
    return specs


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
    lengths = [0 if encoded is None else len(encoded) for _, encoded in sequences]
    entries = [0 if encoded is None else encoded.entry_total for _, encoded in sequences]
    draws = [0 if encoded is None else encoded.draw_total for _, encoded in sequences]
    offsets = {
        "sequence_records": _offsets(lengths),
        "sequence_entries": _offsets(entries),
        "sequence_draws": _offsets(draws),
    }
    size = ShardSize(len(sequences), sum(lengths), sum(entries), sum(draws))
    specs = array_specs(spec, size)
    parts = [encoded for _, encoded in sequences if encoded is not None]
    arrays: dict[str, Array] = {s.name: np.zeros(s.shape, s.dtype) for s in specs}
    fidelity = dict(kept_fidelity or NOTHING_MEASURED)
    if parts:
        whole = EncodedRecords.concatenate(parts)
        fidelity = fidelity if kept_fidelity is not None else measure(whole, spec)
        arrays = {**whole.per_record, **whole.per_entry, **whole.per_draw}
        arrays["byte_starts"] = _gaps(arrays, offsets["sequence_records"])
    arrays.update(offsets)

    lines = [line for line, _ in sequences]
    members: dict[str, Buffer] = {LINES_MEMBER: memoryview(encode_lines(lines))}
    members |= {s.metadata_member: array_metadata(s) for s in specs}
    members |= _encode_arrays(specs, arrays, offsets)
    members[GROUP_MEMBER] = _group(spec, plan, index, size, fidelity, lines)
    return members


def _encode_arrays(
    specs: Sequence[ArraySpec], arrays: dict[str, Array], offsets: dict[str, Array]
) -> dict[str, Buffer]:
    """The data members. A sequence that compresses like a bomb is copied, not compressed."""
    specs = [s for s in specs if s.chunk_count]
    coded = {s.name: encode_array(s, arrays[s.name]) for s in specs}
    readers = {s.name: ArrayReader(s, memoryview(coded[s.name])) for s in specs}
    widest = sum(s.chunk_bytes // s.chunk_length for s in specs)
    lengths = sum(np.diff(o.astype(np.int64)) for o in offsets.values())
    try:
        for i in np.flatnonzero(lengths * widest > FREE_BYTES):
            _check_cost(readers, offsets, int(i))
    except ValueError:
        for s in specs:
            if s.name not in offsets:
                coded[s.name] = encode_array(s, arrays[s.name], level=0)
    return {s.data_member: coded[s.name] for s in specs}


def _check_cost(readers: dict[str, ArrayReader], offsets: dict[str, Array], i: int) -> None:
    """Refuse sequence i if a few bytes say that they are many megabytes of zeros.

    Raises:
        ValueError: They do.
    """
    decoded = stored = 0
    for name, reader in readers.items():
        if name not in offsets:
            start, stop = offsets[_AXIS.get(name, "sequence_records")][i : i + 2]
            cost = reader.cost(int(start), int(stop))
            decoded, stored = decoded + cost[0], stored + cost[1]
    check_ratio(decoded, stored)


def _offsets(lengths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype(np.uint64)


def _gaps(arrays: dict[str, Array], record_offsets: Array) -> Array:
    """Distance of each record's start from the end before it in its sequence; mostly zeros."""
    starts, lengths = arrays["byte_starts"], arrays["byte_lengths"]
    ends = np.concatenate([[0], (starts + lengths)[:-1]])
    firsts = record_offsets[:-1][np.diff(record_offsets) > 0].astype(np.int64)
    ends[firsts] = 0
    if (starts < ends).any():
        raise ValueError("the byte spans of a sequence overlap or run backwards")
    gaps: npt.NDArray[np.uint32] = (starts - ends).astype(np.uint32)
    return gaps


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
    return canonical_json(_group_of(about))


def _group_of(about: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": {"logitstore": about}}


def read_group(archive: Members, spec: StoreSpec, plan: Plan, index: int) -> dict[str, Any]:
    """What a shard says of itself, held to what it must be.

    Raises:
        ValueError: It is another store's, another shard, or not what was written.
        CorruptStoreError: Its bytes are damaged.
    """
    if GROUP_MEMBER not in archive.names:
        raise ValueError(f"there is no {GROUP_MEMBER}")
    raw = archive.check_member(GROUP_MEMBER)
    if len(raw) > _MAX_GROUP_BYTES:
        raise ValueError(f"{GROUP_MEMBER} has {len(raw)} bytes, more than it can need")
    try:
        group = parse_json(bytes(raw))
        about = dict(group["attributes"]["logitstore"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{GROUP_MEMBER} is not that of a shard") from None
    here = (spec.digest, plan.digest, index, list(plan.shard_rows(index)))
    found = (about["content_sha256"], about["plan_sha256"], about["shard"], about["rows"])
    if about["version"] != FORMAT_VERSION or here != found:
        raise ValueError(
            f"it says it is shard {about['shard']} with rows {about['rows']} of content "
            f"{str(about['content_sha256'])[:12]}…, expected shard {index} with rows "
            f"{list(plan.shard_rows(index))} of {spec.digest[:12]}…"
        )
    if set(about) != _ABOUT or raw != canonical_json(_group_of(about)):
        raise ValueError(f"{GROUP_MEMBER} is not the canonical JSON that was written")
    return about


def checked_size(about: dict[str, Any], spec: StoreSpec, plan: Plan, index: int) -> ShardSize:
    """How much a shard says it holds.

    Raises:
        ValueError: It cannot be.
    """
    size, first, stop = ShardSize(**about["size"]), *plan.shard_rows(index)
    records = size.records if type(size.records) is int else 0
    most = (_MAX_SIZE, _MAX_SIZE, records * spec.top_k, records * spec.draws)
    for name, limit in zip(vars(size), most, strict=True):
        count = vars(size)[name]
        if type(count) is not int or not 0 <= count <= limit:
            raise ValueError(f"it cannot hold {count} {name}")
    if size.sequences < stop - first:
        raise ValueError(f"{size.sequences} lines cannot be {stop - first} rows")
    statuses, fidelity = about["statuses"], about["fidelity"]
    counted = isinstance(statuses, dict) and all(type(n) is int for n in statuses.values())
    if not counted or sum(statuses.values()) != size.sequences:
        raise ValueError("its statuses do not add up to its lines")
    if not isinstance(fidelity, dict) or set(fidelity) != set(NOTHING_MEASURED):
        raise ValueError("its fidelity has other fields than the format's")
    numbers = [*fidelity.values(), about["supervised_bytes"]]
    if not all(type(n) in (int, float) and -1 < n < 2**53 for n in numbers):
        raise ValueError("its fidelity holds a value that cannot be")
    return size


class Shard:
    """A committed shard, read lazily: opening checks headers, reading checks what it touches.

    Attributes:
        size: How much it holds.
        about: The group's attributes: rows, fidelity, statuses.
    """

    def __init__(
        self,
        path: StorePath,
        spec: StoreSpec,
        plan: Plan,
        index: int,
        file: BinaryIO | None = None,
    ) -> None:
        """Map the file and check that it is the shard it should be.

        Args:
            path: Where it lies.
            spec: The store's.
            plan: The store's.
            index: Which shard.
            file: Its bytes, where `path` is an object; closed here.

        Raises:
            CorruptStoreError: It is missing, damaged, or another store's.
        """
        self.path, self.spec, self._rows = path, spec, plan.shard_rows(index)
        try:
            self.archive = Archive(path, file)
            self.about = read_group(self.archive, spec, plan, index)
            self.size = checked_size(self.about, spec, plan, index)
            self._arrays = self._open_arrays()
            # Before the offsets: what a line costs in this file bounds how many there can be.
            self._lines = LinesReader(self.archive[LINES_MEMBER], self.size.sequences)
            self._offsets = self._read_offsets()
        except CorruptStoreError as e:
            self._raise(str(e).removeprefix(f"{path}: "), self.rows)
        except (ValueError, KeyError, TypeError) as e:
            self._raise(str(e), self.rows)

    def __len__(self) -> int:
        return self.size.sequences

    def records(self, i: int) -> TokenRecords:
        """Sequence i of this shard, decoded.

        Raises:
            CorruptStoreError: Bytes it needs are damaged; other sequences may still be whole.
        """
        try:
            return self._decode(i)
        except ValueError as e:
            self._raise(str(e), self._row_of(i))

    def encoded(self, i: int) -> EncodedRecords:
        """Sequence i of this shard as it is stored, to be stored again without any change.

        What coding changed (`kl`, `l1`, `dropped`) is not kept for single records: zeros.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        try:
            self._decode(i)  # everything that is checked of a sequence
            return self._encoded(i)
        except ValueError as e:
            self._raise(str(e), self._row_of(i))

    def largest_tail(self) -> float:
        """The most probability that any record leaves outside its entries; 0 without records.

        Raises:
            CorruptStoreError: Its bytes are damaged.
        """
        smallest, step = NEG_INF_CODE, int(self.spec.codec["records_per_chunk"])
        try:
            for start in range(0, self.size.records, step):
                stop = min(start + step, self.size.records)
                codes = self._slice("tail_logmass", start, stop)
                smallest = min(smallest, int(codes.min()))
        except ValueError as e:
            self._raise(str(e), self.rows)
        return 0.0 if smallest == NEG_INF_CODE else math.exp(-smallest * TAIL_STEP)

    def text(self, i: int) -> SequenceText:
        """The text of sequence i.

        Raises:
            CorruptStoreError: Its bytes are damaged.
        """
        try:
            return self._lines[i]
        except ValueError as e:
            self._raise(f"{LINES_MEMBER}: {e}", self.rows)

    def sequence_rows(self) -> npt.NDArray[np.int64]:
        """The dataset row of each sequence."""
        try:
            rows = self._lines.rows(*self._rows)
        except ValueError as e:
            self._raise(f"{LINES_MEMBER}: {e}", self.rows)
        return np.array(rows, np.int64)

    def member_bytes(self) -> dict[str, int]:
        """Compressed bytes of each array, and of the text."""
        found = {
            name: len(reader_bytes)
            for name, reader_bytes in (
                (s.name, self.archive[s.data_member])
                for s in array_specs(self.spec, self.size)
                if s.chunk_count
            )
        }
        return found | {LINES_MEMBER: len(self.archive[LINES_MEMBER])}

    def _open_arrays(self) -> dict[str, ArrayReader]:
        specs = array_specs(self.spec, self.size)
        expected = {GROUP_MEMBER, LINES_MEMBER, *(s.metadata_member for s in specs)}
        expected |= {s.data_member for s in specs if s.chunk_count}
        if set(self.archive.names) != expected:
            odd = sorted(set(self.archive.names) ^ expected)
            raise ValueError(f"its members are not those of this store: {', '.join(odd[:5])}")
        for s in specs:
            if self.archive[s.metadata_member] != array_metadata(s):
                raise ValueError(f"{s.metadata_member} does not describe the array it must")
        return {s.name: ArrayReader(s, self.archive[s.data_member]) for s in specs if s.chunk_count}

    def _read_offsets(self) -> dict[str, npt.NDArray[np.int64]]:
        totals = {
            "sequence_records": self.size.records,
            "sequence_entries": self.size.entries,
            "sequence_draws": self.size.draws,
        }
        found = {}
        for name in totals.keys() & self._arrays.keys():
            raw = self._arrays[name][slice(0, self.size.sequences + 1)]
            offsets = raw.astype(np.int64)
            if offsets[0] != 0 or offsets[-1] != totals[name] or (np.diff(offsets) < 0).any():
                raise ValueError(f"{name} does not divide {totals[name]} among the sequences")
            found[name] = offsets
        return found

    @property
    def record_offsets(self) -> npt.NDArray[np.int64]:
        """Records of sequence i lie from value i up to value i + 1."""
        return self._offsets["sequence_records"]

    def _range(self, name: str, i: int) -> tuple[int, int]:
        return int(self._offsets[name][i]), int(self._offsets[name][i + 1])

    def _slice(self, name: str, a: int, b: int) -> Array:
        reader = self._arrays.get(name)
        if reader is None:  # an array without elements has no member
            spec = next(s for s in array_specs(self.spec, self.size) if s.name == name)
            return np.zeros((0, *spec.shape[1:]), spec.dtype)
        return reader[slice(a, b)]

    def _decode(self, i: int) -> TokenRecords:
        a, b = self._range("sequence_records", i)
        first, stop = self._range("sequence_entries", i)
        _check_cost(self._arrays, self._offsets, i)
        count = self._slice("entry_count", a, b).astype(np.int64)
        if count.sum() != stop - first:
            raise ValueError(f"sequence {i} has {stop - first} entries, its records {count.sum()}")
        logprobs, tail = decode_entries(
            self._slice("entry_logprobs", first, stop), count, self._slice("tail_logmass", a, b)
        )
        lengths = self._slice("byte_lengths", a, b).astype(np.int64)
        ends = np.cumsum(self._slice("byte_starts", a, b).astype(np.int64) + lengths)
        return TokenRecords(
            token_ids=self._slice("token_ids", a, b),
            byte_starts=ends - lengths,
            byte_lengths=lengths,
            token_logprob=self._token_logprob(a, b),
            entry_count=count,
            entry_ids=self._slice("entry_ids", first, stop) if self.spec.has_ids else None,
            entry_logprobs=logprobs,
            tail_logmass=tail,
            entropy=self._entropy(a, b),
            **self._decode_optional(i, a, b),
        )

    def _token_logprob(self, a: int, b: int) -> npt.NDArray[np.float32]:
        """NaN where the source of an import did not say it."""
        codes = self._slice("token_logprob", a, b)
        found = dequantise(codes, TOKEN_STEP)
        if "token_logprob" in self.spec.missing:
            found[codes == NEG_INF_CODE] = np.nan
        return found

    def _entropy(self, a: int, b: int) -> npt.NDArray[np.float32]:
        """NaN where the source of an import did not say it."""
        codes = self._slice("entropy", a, b)
        if "entropy" in self.spec.missing:
            return np.full(len(codes), np.nan, np.float32)
        return dequantise_entropy(codes)

    def _encoded(self, i: int) -> EncodedRecords:
        at = {axis: self._range(axis, i) for axis in self._offsets}
        at.setdefault("sequence_draws", (0, 0))
        parts: dict[str, dict[str, Array]] = {axis: {} for axis in at}
        for s in array_specs(self.spec, self.size):
            if s.name not in at:
                axis = _AXIS.get(s.name, "sequence_records")
                parts[axis][s.name] = self._slice(s.name, *at[axis])
        per_record = parts["sequence_records"]
        lengths = per_record["byte_lengths"].astype(np.int64)
        ends = np.cumsum(per_record["byte_starts"].astype(np.int64) + lengths)
        per_record["byte_starts"] = ends - lengths
        nothing = np.zeros(len(lengths), np.float32)
        return EncodedRecords(
            per_record,
            parts["sequence_entries"],
            parts["sequence_draws"],
            nothing,
            nothing,
            np.zeros(len(lengths), np.int64),
        )

    def _decode_optional(self, i: int, a: int, b: int) -> dict[str, Array]:
        found: dict[str, Array] = {}
        if self.spec.temperatures:
            found["lognorm"] = self._slice("lognorm", a, b)
        if self.spec.has_logit_std:
            found["logit_std"] = self._slice("logit_std", a, b)
            found["lognorm_std"] = self._slice("lognorm_std", a, b)
        if self.spec.draws:
            first, stop = self._range("sequence_draws", i)
            found["draw_count"] = self._slice("draw_count", a, b).astype(np.int64)
            if found["draw_count"].sum() != stop - first:
                raise ValueError(f"sequence {i} has {stop - first} draws, its records have others")
            found["sample_ids"] = self._slice("sample_ids", first, stop)
            found["sample_counts"] = self._slice("sample_counts", first, stop)
        return found

    @property
    def rows(self) -> tuple[int, int]:
        """First and last dataset row."""
        return self._rows[0], self._rows[1] - 1

    def _row_of(self, i: int) -> tuple[int, int]:
        try:
            row = self._lines.rows(*self._rows)[i]
        except (ValueError, IndexError):
            return self.rows
        return row, row

    def _raise(self, why: str, rows: tuple[int, int]) -> NoReturn:
        where = f"row {rows[0]:,}" if rows[0] == rows[1] else f"rows {rows[0]:,} to {rows[1]:,}"
        raise CorruptStoreError(
            f"{self.path}: {where}: {why.rstrip('.')}. Nothing was returned in its place. See "
            f"`logitstore verify {self.path.parent.parent}`; then restore the file from a copy, or "
            f"run `logitstore repair {self.path.parent.parent}` to redo just this shard.",
            path=self.path,
            rows=rows,
        ) from None
