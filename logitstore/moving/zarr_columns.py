"""List the arrays of an export to zarr, describe them, and compute their elements batch by batch.

`format/fields.py` says which fields a record has and their types; this module describes each.

Lists of different lengths are concatenated, and a start and a count say where each of them is: the
records of a sequence, the entries and draws of a record, the text of a sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from logitstore.format.canonical_json import canonical_json
from logitstore.format.fields import DRAWS, ENTRIES, RECORDS, Field, fields_of
from logitstore.format.numpy_types import Array
from logitstore.format.spec import StoreSpec
from logitstore.reading.shard import Shard
from logitstore.records import SequenceText, TokenRecords

Batch = tuple[list[SequenceText], list[TokenRecords]]

_BATCH_RECORDS = 16_384
_BATCH_SEQUENCES = 256
#: Sentences for a reader who has the arrays and nothing else.
HOW_TO_READ = (
    "A record describes the distribution that predicted its token, given everything before it.",
    "Records of sequence i: record_start[i] up to record_start[i] + record_count[i].",
    (
        "Entries of record t, most probable first: entry_start[t] up to entry_start[t] + "
        "entry_count[t]; draws likewise. The tail, all other tokens, has probability "
        "exp(tail_logmass[t]): entries and tail together sum to 1."
    ),
    "Log-probabilities are natural logarithms, over the full vocabulary, at temperature 1.",
    (
        "The bytes of record t of sequence i: text[text_start[i] + byte_starts[t] - "
        "supervised_start[i]], byte_lengths[t] of them, UTF-8; none for a token that ends a text."
    ),
    (
        "lines[line_start[i] : line_start[i] + line_bytes[i]] is JSON: the dataset row with its "
        "context, roles, status and messages."
    ),
)


@dataclass(frozen=True)
class Column:
    """The description of an array in an export.

    Attributes:
        name: Its name.
        axis: Its first dimension.
        dtype: The type of its elements.
        about: What an element is, in words.
        units: The unit of its elements, or nothing.
        counts: For a count: the dimension whose elements it counts.
        is_per_temperature: Whether it has a second dimension, the extra temperatures.
    """

    name: str
    axis: str
    dtype: str
    about: str
    units: str = ""
    counts: str = ""
    is_per_temperature: bool = False

    @property
    def attributes(self) -> dict[str, str]:
        """Return the array's attributes, named as xarray and the CF conventions name them."""
        known = {"long_name": self.about, "units": self.units, "sample_dimension": self.counts}
        return {name: value for name, value in known.items() if value}


_NATS = "nats"
#: The dimension of each axis of `format/fields.py`.
_DIMENSIONS = {RECORDS: "record", ENTRIES: "entry", DRAWS: "draw"}
#: What an element of each field is, and its unit.
DESCRIPTIONS = {
    "token_ids": ("the teacher's token", ""),
    "byte_starts": ("supervised bytes of the row before it", "bytes"),
    "byte_lengths": ("bytes that the token writes", "bytes"),
    "token_logprob": ("log-probability of the token", _NATS),
    "entry_count": ("entries", ""),
    "tail_logmass": ("log of the tail: probability beyond the entries", _NATS),
    "entropy": ("entropy of the full distribution", _NATS),
    "entry_logprobs": ("log-probability", _NATS),
    "entry_ids": ("token of the vocabulary", ""),
    "lognorm": ("log of the sum over the vocabulary of p to the power of 1 / temperature", _NATS),
    "logit_std": ("standard deviation of the logits", ""),
    "lognorm_std": ("lognorm at a temperature of logit_std + 1e-4", _NATS),
    "draw_count": ("distinct draws", ""),
    "sample_ids": ("token drawn from the tail", ""),
    "sample_counts": ("how often it was drawn", ""),
}
_SEQUENCES = (
    Column("row", "sequence", "i8", "row of the dataset"),
    Column("part", "sequence", "i4", "number of the window of a row that was split, or 0"),
    Column("record_start", "sequence", "i8", "first record"),
    Column("record_count", "sequence", "i8", "records", counts="record"),
    Column("supervised_start", "sequence", "i8", "supervised text of earlier parts", "bytes"),
    Column("text_start", "sequence", "i8", "first byte in `text`"),
    Column("text_bytes", "sequence", "i8", "length in `text`", "bytes", "text_byte"),
    Column("line_start", "sequence", "i8", "first byte in `lines`"),
    Column("line_bytes", "sequence", "i8", "length in `lines`", "bytes", "line_byte"),
    Column("text", "text_byte", "u1", "supervised text, UTF-8"),
    Column("lines", "line_byte", "u1", "rows with context, roles and status, JSON in UTF-8"),
)
_TEMPERATURE = Column("temperature", "temperature", "f8", "temperatures of lognorm")
_STARTS = {
    "entry_count": Column("entry_start", "record", "i8", "first entry"),
    "draw_count": Column("draw_start", "record", "i8", "first draw"),
}


def columns_of(spec: StoreSpec) -> list[Column]:
    """List the arrays of an export of a store with this spec."""
    columns = list(_SEQUENCES)
    for field in fields_of(spec):
        if field.name in _STARTS:
            columns.append(_STARTS[field.name])
        column = _column(field)
        columns.append(_marked(column) if field.name in spec.missing else column)
    return [*columns, _TEMPERATURE] if spec.temperatures else columns


def _column(field: Field) -> Column:
    about, units = DESCRIPTIONS[field.name]
    return Column(
        field.name,
        _DIMENSIONS[field.axis],
        field.exported.str[1:],
        about,
        units,
        counts=field.name.removesuffix("_count") if field.name in _STARTS else "",
        is_per_temperature=field.is_per_temperature,
    )


def _marked(column: Column) -> Column:
    """Mark a column as unknown: the source of an import did not have its values."""
    return replace(column, about=f"{column.about}; unknown to the import, not to be used")


def batches(shard: Shard) -> Iterator[Batch]:
    """Yield the sequences of a shard in batches of bounded size."""
    counts = np.diff(shard.record_offsets)
    first = records = 0
    for i, count in enumerate(counts):
        if i > first and (records + count > _BATCH_RECORDS or i - first >= _BATCH_SEQUENCES):
            yield _batch(shard, range(first, i))
            first, records = i, 0
        records += int(count)
    if len(counts):
        yield _batch(shard, range(first, len(counts)))


def _batch(shard: Shard, places: range) -> Batch:
    return [shard.text(i) for i in places], shard.records_of(places)


class Columns:
    """A converter of consecutive sequences into elements of the arrays.

    Attributes:
        totals: The number of elements so far along each dimension.
    """

    def __init__(self, spec: StoreSpec) -> None:
        self._fields = [field.name for field in fields_of(spec)]
        self.totals = dict.fromkeys(("sequence", "record", "entry", "draw"), 0)
        self.totals |= {"text_byte": 0, "line_byte": 0}

    def of(self, lines: list[SequenceText], records: list[TokenRecords]) -> dict[str, Array]:
        """Return the next elements of every array."""
        texts = [line.supervised_bytes for line in lines]
        encoded = [canonical_json(_line(line)) for line in lines]
        elements = {
            "row": np.array([line.row for line in lines]),
            "part": np.array([line.part for line in lines]),
            "supervised_start": np.array([line.supervised_start for line in lines]),
            "record_count": np.array([len(r) for r in records]),
            "text_bytes": np.array([len(t) for t in texts]),
            "line_bytes": np.array([len(t) for t in encoded]),
            "text": np.frombuffer(b"".join(texts), np.uint8),
            "lines": np.frombuffer(b"".join(encoded), np.uint8),
        }
        elements |= {n: np.concatenate([getattr(r, n) for r in records]) for n in self._fields}
        self.totals["sequence"] += len(lines)
        elements["record_start"] = self._starts("record", elements["record_count"])
        elements["text_start"] = self._starts("text_byte", elements["text_bytes"])
        elements["line_start"] = self._starts("line_byte", elements["line_bytes"])
        elements["entry_start"] = self._starts("entry", elements["entry_count"])
        if "draw_count" in elements:
            elements["draw_start"] = self._starts("draw", elements["draw_count"])
        return elements

    def _starts(self, axis: str, counts: Array) -> Array:
        """Return where lists of these lengths begin along a dimension."""
        stops = self.totals[axis] + np.cumsum(counts, dtype=np.int64)
        self.totals[axis] = int(stops[-1])
        return np.asarray(stops - counts, np.int64)


def _line(line: SequenceText) -> dict[str, Any]:
    return line._asdict() | {"segments": [s._asdict() for s in line.segments]}
