"""Define the columns and the metadata of a store that is exported to Parquet.

    export/
      data/train-00000-of-00003.parquet   one file for each shard, one line for each sequence
      tokenizer/                          the teacher's tokenizer, as in the store

`datasets.load_dataset("export")`, polars and pyarrow read the files as they are (file names follow
the hub's convention). The lists of a line have one item for each token; those of `entry_…` and
`sample_…` are lists again. Log-probabilities are decoded, in nats; entries and tail sum to 1.

`input_ids`, `attention_mask`, `labels` and `loss_mask` have one item for each token that the
teacher read, as trainers take them; the items of the other lists are of those tokens that
`loss_mask` marks. An import does not read these four, nor `tokens_agree` (`Example.agrees`).

Decoding spreads the rounding error over the entries, which cannot be undone. So `entry_codes` and
`tail_codes` hold the stored codes: an import reads those and writes the same bytes as the original
store. The schema's metadata has, under `logitstore`, the store's content and provenance, the file's
place in the plan, and the shard's fidelity.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from logitstore.format.canonical_json import canonical_json, parse_json
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import DRAWS, ENTRIES, RECORDS, Field, fields_of
from logitstore.format.numpy_types import Array
from logitstore.format.rows_parquet import SCHEMA as LINES_SCHEMA
from logitstore.format.spec import StoreSpec
from logitstore.records import Example, SequenceText, TokenRecords

METADATA_KEY = b"logitstore"
EXPORT_VERSION = 1
DATA_FOLDER = "data"

_COUNTS = ("entry_count", "draw_count")
_CODES_BEHIND = {  # what is stored, as columns behind those of what is decoded
    "entropy": {"tail_codes": pa.uint16()},
    "entry_logprobs": {"entry_codes": pa.list_(pa.uint16())},
}
_LINE_FIELDS = ("row", "part", "status", "supervised_start", "segments", "messages")

_OF_EXAMPLES = {
    "input_ids": pa.list_(pa.int32()),
    "attention_mask": pa.list_(pa.int8()),
    "labels": pa.list_(pa.int32()),
    "loss_mask": pa.list_(pa.bool_()),
}
_AGREES = "tokens_agree"

Sequence_ = tuple[SequenceText, TokenRecords, EncodedRecords]


def file_name(index: int, count: int) -> str:
    """Return the name of a shard's file in `DATA_FOLDER`."""
    return f"train-{index:05d}-of-{count:05d}.parquet"


def schema_of(spec: StoreSpec) -> pa.Schema:
    """Return the columns of an export of a store with this spec."""
    fields = [LINES_SCHEMA.field(name) for name in _LINE_FIELDS]
    fields += [pa.field(name, pa.list_(kind)) for name, kind in _per_token(spec).items()]
    return pa.schema(fields)


def with_examples(schema: pa.Schema) -> pa.Schema:
    """Return the columns of an export that has the tokens between the records, too."""
    for name, kind in _OF_EXAMPLES.items():
        schema = schema.append(pa.field(name, kind))
    return schema.append(pa.field(_AGREES, pa.bool_()))


def columns_of(spec: StoreSpec) -> list[Field]:
    """List the fields that are columns; the counts are not: they are the lengths of lists."""
    return [field for field in fields_of(spec) if field.name not in _COUNTS]


def _per_token(spec: StoreSpec) -> dict[str, pa.DataType]:
    """Map each column of lists to the type of the item that a token has in it."""
    kinds: dict[str, pa.DataType] = {}
    for field in columns_of(spec):
        kind = pa.from_numpy_dtype(field.exported)
        is_list = field.axis != RECORDS or field.is_per_temperature
        kinds[field.name] = pa.list_(kind) if is_list else kind
        kinds |= _CODES_BEHIND.get(field.name, {})
    return kinds


def table_of(spec: StoreSpec, sequences: Sequence[Sequence_]) -> pa.Table:
    """Convert sequences to lines of an export."""
    lines = [line for line, _, _ in sequences]
    columns: dict[str, pa.Array] = {}
    for name in _LINE_FIELDS:
        values = [getattr(line, name) for line in lines]
        if name == "segments":
            values = [[s._asdict() for s in segments] for segments in values]
        columns[name] = pa.array(values, LINES_SCHEMA.field(name).type)
    lengths = np.array([len(records) for _, records, _ in sequences])
    flat = [_flat(spec, records, encoded) for _, records, encoded in sequences]
    for name, kind in _per_token(spec).items():
        values = [arrays[name] for arrays in flat]
        columns[name] = _lists(_inner(values, kind), lengths)
    return pa.table(columns, schema=schema_of(spec))


def add_examples(table: pa.Table, examples: Sequence[Example]) -> pa.Table:
    """Add the tokens of each line to a table, as :func:`with_examples` names the columns."""
    lengths = np.array([len(example) for example in examples])
    for name, kind in _OF_EXAMPLES.items():
        values = np.concatenate([getattr(example, name) for example in examples])
        lists = _lists(pa.array(values).cast(kind.value_type), lengths)
        table = table.append_column(pa.field(name, kind), lists)
    agrees = pa.array([example.agrees for example in examples], pa.bool_())
    return table.append_column(pa.field(_AGREES, pa.bool_()), agrees)


def _flat(spec: StoreSpec, records: TokenRecords, encoded: EncodedRecords) -> dict[str, Any]:
    """Return the columns of one sequence: arrays over tokens, or (counts, values) for lists."""
    count, deltas = records.entry_count, encoded.fields["entry_logprobs"]
    running = np.cumsum(deltas, dtype=np.int64)
    codes = running - np.repeat(_before(running, deltas, count), count)
    arrays: dict[str, Any] = {
        "tail_codes": encoded.fields["tail_logmass"],
        "entry_codes": (count, codes.astype(np.uint16)),
    }
    counts = {ENTRIES: count, DRAWS: records.draw_count}
    for field in columns_of(spec):
        values = getattr(records, field.name).astype(field.exported, copy=False)
        if field.axis != RECORDS:
            values = (counts[field.axis], values)
        elif field.is_per_temperature:
            values = (np.full(len(values), values.shape[1]), values.ravel())
        arrays[field.name] = values
    return arrays


def _before(running: Array, deltas: Array, count: Array) -> Array:
    """Return (n,) the running sum before each record's first entry."""
    starts, has = np.cumsum(count) - count, count > 0
    before = np.zeros(len(count), np.int64)
    before[has] = running[starts[has]] - deltas[starts[has]]
    return before


def _inner(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Concatenate the values of all sequences; NaN, which stands for "unknown", becomes null."""
    if pa.types.is_list(kind):
        counts = np.concatenate([counts for counts, _ in values])
        flat = np.concatenate([flat for _, flat in values])
        return _lists(pa.array(flat, kind.value_type), counts)
    return pa.array(np.concatenate(list(values)), kind, from_pandas=True)


def _lists(values: pa.Array, counts: Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def metadata_of(about: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the metadata of the schema."""
    return {METADATA_KEY: canonical_json({"version": EXPORT_VERSION} | dict(about))}


def read_metadata(schema: pa.Schema) -> dict[str, Any] | None:
    """Return what :func:`metadata_of` was given, or None for a file that is not an export.

    Raises:
        ValueError: The metadata is present, but cannot be read.
    """
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        return None
    metadata = parse_json(raw)
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is not an object")  # noqa: TRY004
    return metadata
