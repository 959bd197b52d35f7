"""List the fields of a record, and the arrays in which a shard stores them: the one table of both.

A field has three forms:

    raw        exact numbers, as the teacher pass computes them      `writing.encode.RawRecords`
    encoded    small integers, as they are stored                    `format.encoded.EncodedRecords`
    decoded    float32 log-probabilities, as readers return them     `records.TokenRecords`

Everything that goes through the fields (encoding, the arrays of a shard, decoding, Parquet columns)
loops over `FIELDS`. A new optional field is a line here, an attribute of `RawRecords` and of
`TokenRecords`, and whatever computes it.

A field is stored as an array of its own name and encoded type, unless `arrays` says otherwise: some
are smaller as distances (`shard_arrays.py` has the arithmetic). FORMAT.md describes all of them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitstore.format.logprob_codec import (
    NEG_INF_CODE,
    TOKEN_STEP,
    decode_entries,
    dequantise,
    dequantise_entropy,
    quantise,
    quantise_entropy,
)
from logitstore.format.numpy_types import Array
from logitstore.format.spec import StoreSpec
from logitstore.records import TokenRecords

When = Callable[[StoreSpec], bool]

#: The axes that arrays run along, by their names in `ShardSize`. Arrays of offsets have the last.
RECORDS, ENTRIES, DRAWS, SEQUENCES = "records", "entries", "draws", "sequences"


class Quantiser(NamedTuple):
    """A pair of functions that turn real numbers into integer codes and back, one by one."""

    encode: Callable[[npt.ArrayLike], Array]
    decode: Callable[[Array], Array]
    unknown: float  # encoded in place of a number that the source of an import lacks
    is_unknown: Callable[[Array], Array]  # where codes are that, if `spec.missing` lists the field


_LOGPROB = Quantiser(
    encode=lambda values: quantise(values, TOKEN_STEP),
    decode=lambda codes: dequantise(codes, TOKEN_STEP),
    unknown=-np.inf,
    is_unknown=lambda codes: codes == NEG_INF_CODE,
)
_ENTROPY = Quantiser(
    encode=quantise_entropy,
    decode=dequantise_entropy,
    unknown=0.0,
    is_unknown=lambda codes: np.ones(len(codes), np.bool_),
)


def _always(spec: StoreSpec) -> bool:
    return True


def _with_ids(spec: StoreSpec) -> bool:
    return spec.has_ids


def _with_temperatures(spec: StoreSpec) -> bool:
    return bool(spec.temperatures)


def _with_logit_std(spec: StoreSpec) -> bool:
    return spec.has_logit_std


def _with_draws(spec: StoreSpec) -> bool:
    return spec.draws > 0


def _with_draws_1(spec: StoreSpec) -> bool:
    return spec.draws > 0 and spec.layout == 1


def _with_draws_2(spec: StoreSpec) -> bool:
    return spec.draws > 0 and spec.layout == 2


@dataclass(frozen=True)
class StoredArray:
    """An array of a shard: the axis that it runs along, and how it is coded.

    Attributes:
        name: The first part of its members' names.
        axis: What it runs along.
        dtype: Type of its elements.
        when: Which stores have it.
        shuffle: How blosc arranges its bytes before it compresses them.
        compact: The coding in a compact store, for the types that pcodec knows.
        is_per_temperature: Whether it has a column for each extra temperature.
    """

    name: str
    axis: str
    dtype: str
    when: When = _always
    shuffle: str = "bitshuffle"
    compact: str = "pcodec"
    is_per_temperature: bool = False


@dataclass(frozen=True)
class Field:
    """A field of a record, with its forms and how one becomes the other.

    Attributes:
        name: As in `TokenRecords`.
        axis: What it runs along: records, or the entries or draws of all records, flat.
        encoded: Its type in `EncodedRecords`.
        decoded: Its type in `TokenRecords`.
        when: Which stores have it.
        quantiser: How numbers become codes; None for numbers that stay what they are, and for
            entries and tails, which are coded together (`logprob_codec.py`).
        is_per_temperature: Whether it has a column for each extra temperature.
        arrays: What a shard stores for it; default: one array like it.
    """

    name: str
    axis: str
    encoded: str
    decoded: str
    when: When = _always
    quantiser: Quantiser | None = None
    is_per_temperature: bool = False
    arrays: tuple[StoredArray, ...] | None = None

    def encode(self, values: npt.ArrayLike) -> Array:
        """Encode the field's raw values."""
        codes = values if self.quantiser is None else self.quantiser.encode(values)
        return np.asarray(codes).astype(self.encoded, copy=False)

    def decode(self, codes: Array, *, is_missing: bool = False) -> Array:
        """Decode codes; NaN for what the source of an import lacks.

        Args:
            codes: In encoded form.
            is_missing: Whether `spec.missing` lists this field.
        """
        if self.quantiser is None:
            return codes.astype(self.decoded, copy=False)
        values = self.quantiser.decode(codes)
        if is_missing:
            values[self.quantiser.is_unknown(codes)] = np.nan
        return values

    @property
    def exported(self) -> np.dtype[Any]:
        """Its type in an export: numbers as readers see them, integers as narrow as encoded."""
        decoded = np.dtype(self.decoded)
        return decoded if decoded.kind == "f" else np.dtype(self.encoded)

    @property
    def stored(self) -> tuple[StoredArray, ...]:
        """The arrays that a shard stores for it."""
        if self.arrays is not None:
            return self.arrays
        alike = StoredArray(self.name, self.axis, self.encoded, self.when)
        return (replace(alike, is_per_temperature=self.is_per_temperature),)


def _draws(first: StoredArray, second: StoredArray) -> tuple[StoredArray, ...]:
    """Give each of the two layouts of draws an array of its own."""
    return replace(first, when=_with_draws_1), replace(second, when=_with_draws_2)


_BYTE_STARTS = (StoredArray("byte_starts", RECORDS, "<u4"),)  # from the end of the record before
_DRAW_COUNT = _draws(
    StoredArray("draw_count", RECORDS, "<u2"), StoredArray("draw_total", RECORDS, "<u2")
)
_SAMPLE_IDS = _draws(
    StoredArray("sample_ids", DRAWS, "<u4"),
    StoredArray("sample_gaps", DRAWS, "<u4", shuffle="shuffle", compact="pcodec_slow"),
)
_SAMPLE_COUNTS = _draws(
    StoredArray("sample_counts", DRAWS, "|u1"),
    StoredArray("sample_counts", DRAWS, "<u2", shuffle="shuffle"),
)

#: Also the order of the columns of a Parquet export.
FIELDS = (
    #     name            axis     encoded decoded
    Field("token_ids", RECORDS, "<u4", "<u4"),
    Field("byte_starts", RECORDS, "<i8", "<i8", arrays=_BYTE_STARTS),
    Field("byte_lengths", RECORDS, "<u2", "<i8"),
    Field("token_logprob", RECORDS, "<u2", "<f4", quantiser=_LOGPROB),
    Field("entry_count", RECORDS, "<u2", "<i8"),
    Field("tail_logmass", RECORDS, "<u2", "<f4"),
    Field("entropy", RECORDS, "<u2", "<f4", quantiser=_ENTROPY),
    Field("entry_logprobs", ENTRIES, "<u2", "<f4"),
    Field("entry_ids", ENTRIES, "<u4", "<u4", _with_ids),
    Field("lognorm", RECORDS, "<f4", "<f4", _with_temperatures, is_per_temperature=True),
    Field("logit_std", RECORDS, "<f4", "<f4", _with_logit_std),
    Field("lognorm_std", RECORDS, "<f4", "<f4", _with_logit_std),
    Field("draw_count", RECORDS, "<u2", "<i8", _with_draws, arrays=_DRAW_COUNT),
    Field("sample_ids", DRAWS, "<u4", "<u4", _with_draws, arrays=_SAMPLE_IDS),
    Field("sample_counts", DRAWS, "|u1", "|u1", _with_draws, arrays=_SAMPLE_COUNTS),
)
FIELD = {field.name: field for field in FIELDS}

#: Fields that are only decoded together: a record's entries and tail are made to sum to one.
HEAD = ("entry_count", "tail_logmass", "entry_logprobs")

#: Where each sequence lies on an axis: sequence i from value i up to value i + 1.
OFFSETS = {
    RECORDS: StoredArray("sequence_records", SEQUENCES, "<u8"),
    ENTRIES: StoredArray("sequence_entries", SEQUENCES, "<u8"),
    DRAWS: StoredArray("sequence_draws", SEQUENCES, "<u8", _with_draws),
}
_ARRAYS = (*(array for field in FIELDS for array in field.stored), *OFFSETS.values())

#: The axis of every array and field, by name.
AXIS = {f.name: f.axis for f in FIELDS} | {a.name: a.axis for a in _ARRAYS}


def fields_of(spec: StoreSpec) -> list[Field]:
    """List the fields that the records of a store have."""
    return [field for field in FIELDS if field.when(spec)]


def arrays_of(spec: StoreSpec) -> list[StoredArray]:
    """List the arrays that the shards of a store have."""
    return [array for array in _ARRAYS if array.when(spec)]


def decode_fields(encoded: Mapping[str, Array], missing: Collection[str] = ()) -> dict[str, Array]:
    """Decode some fields of the same records.

    Args:
        encoded: Fields in encoded form, of any number of sequences; those of `HEAD` all or none.
        missing: `spec.missing`.

    Raises:
        ValueError: The codes of a record cannot be a distribution.
    """
    decoded: dict[str, Array] = {}
    if "entry_logprobs" in encoded:
        count = decoded["entry_count"] = FIELD["entry_count"].decode(encoded["entry_count"])
        decoded["entry_logprobs"], decoded["tail_logmass"] = decode_entries(
            encoded["entry_logprobs"], count, encoded["tail_logmass"]
        )
    for name, codes in encoded.items():
        if name not in decoded:
            decoded[name] = FIELD[name].decode(codes, is_missing=name in missing)
    return decoded


def token_records(decoded: Mapping[str, Array]) -> TokenRecords:
    """Make `TokenRecords` of decoded fields; None for the fields that are not given."""
    fields: dict[str, Any] = dict.fromkeys(FIELD) | dict(decoded)
    return TokenRecords(**fields)


def no_records() -> TokenRecords:
    """Make `TokenRecords` of length 0, with every field that a store can have."""
    shapes = {f.name: (0, 0) if f.is_per_temperature else (0,) for f in FIELDS}
    return token_records({f.name: np.zeros(shapes[f.name], f.decoded) for f in FIELDS})


#: What an array holds, for people.
IN_WORDS = {
    "entry_ids": "expected tokens",
    "entry_logprobs": "expected probabilities",
    "entry_count": "how many were kept",
    "tail_logmass": "what was not kept",
    "token_ids": "tokens of the text",
    "token_logprob": "probability of the text",
    "byte_starts": "places in the text",
    "byte_lengths": "lengths in the text",
    "entropy": "entropy",
    "lognorm": "other temperatures",
    "logit_std": "spread of logits",
    "lognorm_std": "normaliser at that spread",
    "sample_ids": "drawn tokens",
    "sample_counts": "how often drawn",
    "rows.parquet": "the text",
    "sequence_records": "directory of tokens",
    "sequence_entries": "directory of expected",
    "sequence_draws": "directory of drawn",
}
