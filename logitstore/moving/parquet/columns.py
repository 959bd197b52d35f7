"""A store as Parquet: what its columns are, and what the files say beside them.

    export/
      data/train-00000-of-00003.parquet   one file a shard, one line a sequence
      tokenizer/                          the teacher's tokenizer, as in the store

`datasets.load_dataset("export")`, polars and pyarrow read the files as they are (the names are
those of the hub). Lists of a line have one item a token; `entry_…` and `sample_…` are lists of such
lists. Log-probabilities are decoded, in nats, head and tail together one.

Decoding divides what rounding left over, which cannot be undone, so `entry_codes` and `tail_codes`
carry what is stored: an import reads those, and gives the same bytes again. The schema's metadata
has, under `logitstore`, the store's content and provenance, the file's place in the plan, and what
the shard says of its fidelity.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from logitstore.format.canonical_json import canonical_json, parse_json
from logitstore.format.encoded import EncodedRecords
from logitstore.format.rows_parquet import SCHEMA as LINES_SCHEMA
from logitstore.format.spec import StoreSpec
from logitstore.records import SequenceText, TokenRecords

METADATA_KEY = b"logitstore"
EXPORT_VERSION = 1
DATA_FOLDER = "data"

_LINE_FIELDS = ("row", "part", "status", "supervised_start", "segments", "messages")

Array = npt.NDArray[Any]
Sequence_ = tuple[SequenceText, TokenRecords, EncodedRecords]


def file_name(index: int, count: int) -> str:
    """Of the file of a shard, below `DATA_FOLDER`."""
    return f"train-{index:05d}-of-{count:05d}.parquet"


def schema_of(spec: StoreSpec) -> pa.Schema:
    """The columns of an export of such a store."""
    fields = [LINES_SCHEMA.field(name) for name in _LINE_FIELDS]
    fields += [pa.field(name, pa.list_(kind)) for name, kind in _per_token(spec).items()]
    return pa.schema(fields)


def _per_token(spec: StoreSpec) -> dict[str, pa.DataType]:
    kinds: dict[str, pa.DataType] = {
        "token_ids": pa.uint32(),
        "byte_starts": pa.int64(),
        "byte_lengths": pa.uint16(),
        "token_logprob": pa.float32(),
        "tail_logmass": pa.float32(),
        "entropy": pa.float32(),
        "tail_codes": pa.uint16(),
        "entry_logprobs": pa.list_(pa.float32()),
        "entry_codes": pa.list_(pa.uint16()),
    }
    if spec.has_ids:
        kinds["entry_ids"] = pa.list_(pa.uint32())
    if spec.temperatures:
        kinds["lognorm"] = pa.list_(pa.float32())
    if spec.has_logit_std:
        kinds |= {"logit_std": pa.float32(), "lognorm_std": pa.float32()}
    if spec.draws:
        kinds |= {"sample_ids": pa.list_(pa.uint32()), "sample_counts": pa.list_(pa.uint8())}
    return kinds


def table_of(spec: StoreSpec, sequences: Sequence[Sequence_]) -> pa.Table:
    """Some sequences as lines of an export."""
    lines = [line for line, _, _ in sequences]
    columns: dict[str, pa.Array] = {}
    for name in _LINE_FIELDS:
        values = [getattr(line, name) for line in lines]
        if name == "segments":
            values = [[s._asdict() for s in segments] for segments in values]
        columns[name] = pa.array(values, LINES_SCHEMA.field(name).type)
    lengths = np.array([len(records) for _, records, _ in sequences])
    flat = [_flat(records, encoded) for _, records, encoded in sequences]
    for name, kind in _per_token(spec).items():
        values = [arrays[name] for arrays in flat]
        columns[name] = _lists(_inner(values, kind), lengths)
    return pa.table(columns, schema=schema_of(spec))


def _flat(records: TokenRecords, encoded: EncodedRecords) -> dict[str, Any]:
    """Columns of one sequence: an array a token, or (counts, values) where there are lists."""
    count = records.entry_count
    running = np.cumsum(encoded.per_entry["entry_logprobs"], dtype=np.int64)
    codes = running - np.repeat(_before(running, encoded.per_entry["entry_logprobs"], count), count)
    found: dict[str, Any] = {
        "token_ids": records.token_ids,
        "byte_starts": records.byte_starts,
        "byte_lengths": records.byte_lengths.astype(np.uint16),
        "token_logprob": records.token_logprob,
        "tail_logmass": records.tail_logmass,
        "entropy": records.entropy,
        "tail_codes": encoded.per_record["tail_logmass"],
        "entry_logprobs": (count, records.entry_logprobs),
        "entry_codes": (count, codes.astype(np.uint16)),
        "entry_ids": (count, records.entry_ids),
        "logit_std": records.logit_std,
        "lognorm_std": records.lognorm_std,
        "sample_ids": (records.draw_count, records.sample_ids),
        "sample_counts": (records.draw_count, records.sample_counts),
    }
    if records.lognorm is not None:
        n, temperatures = records.lognorm.shape
        found["lognorm"] = (np.full(n, temperatures), records.lognorm.ravel())
    return found


def _before(running: Array, deltas: Array, count: Array) -> Array:
    """(n,) the running sum before each record's first entry."""
    starts, has = np.cumsum(count) - count, count > 0
    before = np.zeros(len(count), np.int64)
    before[has] = running[starts[has]] - deltas[starts[has]]
    return before


def _inner(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """What all sequences hold, one after the other; NaN, which is nothing, as null."""
    if pa.types.is_list(kind):
        counts = np.concatenate([counts for counts, _ in values])
        flat = np.concatenate([flat for _, flat in values])
        return _lists(pa.array(flat, kind.value_type), counts)
    return pa.array(np.concatenate(list(values)), kind, from_pandas=True)


def _lists(values: pa.Array, counts: Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def metadata_of(about: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The schema's metadata."""
    return {METADATA_KEY: canonical_json({"version": EXPORT_VERSION} | dict(about))}


def read_metadata(schema: pa.Schema) -> dict[str, Any] | None:
    """What :func:`metadata_of` was given; None for a file of something else.

    Raises:
        ValueError: It is there, but cannot be read.
    """
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        return None
    found = parse_json(raw)
    if not isinstance(found, dict):
        raise ValueError("its metadata is no object")  # noqa: TRY004
    return found
