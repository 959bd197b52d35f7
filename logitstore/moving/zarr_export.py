"""Export a store, decoded, as one ordinary zarr v3 group (`logitstore export --to zarr`).

    import xarray as xr
    data = xr.open_zarr("export")                       # lazy; with dask, in parallel
    i = 5                                               # a sequence
    records = slice(int(data.record_start[i]), int(data.record_start[i] + data.record_count[i]))
    data.entropy[records].values

    group attributes     the teacher, the capture settings, and how to read the arrays
    <array>              one for each field, over all shards, described by its attributes
    tokenizer/<file>     the teacher's tokenizer files, as arrays of bytes

Lists of different lengths are concatenated, and a start and a count say where each of them is: the
records of a sequence, the entries and draws of a record, the text of a sequence. Counts carry CF's
`sample_dimension`. Log-probabilities are float32 in nats, as `store[i]` returns them.

zarr decides the bytes; chunks have checksums (crc32c), also those of zeros are written. An array
grows by whole blocks, so memory is bounded by a batch of sequences and one block an array. A folder
appears whole, by one rename; in a bucket the group's own `zarr.json` is written last, and without
it nothing opens.
"""

import warnings
from dataclasses import asdict
from os import PathLike
from typing import Any

import numpy as np
import zarr
from zarr.abc.buffer import Buffer as AnyBuffer
from zarr.buffer.cpu import Buffer
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from logitstore.console.progress import progress
from logitstore.format.numpy_types import Array
from logitstore.format.shard_group import GROUP_MEMBER
from logitstore.format.spec import TOKENIZER_FOLDER, StoreSpec
from logitstore.moving.folders import open_finished, say_hidden_stays, tokenizer_files
from logitstore.moving.zarr_columns import HOW_TO_READ, Column, Columns, batches, columns_of
from logitstore.moving.zarr_target import Target, target_at
from logitstore.storage.paths import StorePath, store_path
from logitstore.store import LogitStore

EXPORT_VERSION = 1
# What a reader decodes for one value, about a megabyte; one length a dimension, as dask wants it.
_CHUNK_LENGTHS = {"entry": 2**18, "draw": 2**18, "text_byte": 2**20, "line_byte": 2**20}
_CHUNK_LENGTH = 2**17
_CHUNKS_OF_BLOCK = 8  # of what zarr calls a shard: one file or object
_MAX_METADATA = 1024 * 1024  # bytes of an array's, which zarr has just written


def export_zarr(
    store: str | PathLike[str] | StorePath, out: str | PathLike[str] | StorePath
) -> dict[str, Any]:
    """Write a finished store as a zarr v3 group of decoded arrays (described in this module).

    Args:
        store: The store's folder or URL.
        out: A folder that is not there yet, or a URL that fsspec writes to, with nothing below it.

    Returns:
        `path`, and how many `arrays`, `sequences`, `records` and `entries` it has.

    Raises:
        MismatchError: `out` is there already.
        InputError: A URL of a kind that cannot be written.
        CorruptStoreError: Bytes of the store are damaged; nothing was written.
        StorageError: The file system or object store failed; nothing was written.
    """
    source, place = open_finished(store), store_path(out)
    say_hidden_stays(source)
    target = target_at(place)
    target.check_free()
    try:
        target.begin()
        totals = _write(source, target)
        target.publish()
    except OSError as e:
        raise target.explained(e) from e
    finally:
        target.clean_up()
    return {"path": str(place), "arrays": len(columns_of(source.spec))} | totals


def _write(source: LogitStore, target: Target) -> dict[str, int]:
    """Write every array, then the group; return the numbers of sequences, records and entries."""
    tokenizer = tokenizer_files(source)
    arrays = {c.name: GrowingArray(c, c.name, target, source.spec) for c in columns_of(source.spec)}
    columns = Columns(source.spec)
    with progress(len(source), "export", "sequences") as shown:
        for index in source.shards:
            for lines, records in batches(source.shard(index)):
                for name, values in columns.of(lines, records).items():
                    arrays[name].append(values)
                shown.update(len(lines))
    if source.spec.temperatures:
        arrays["temperature"].append(np.array(source.spec.temperatures))
    for array in arrays.values():
        array.close()
    for name, data in tokenizer.items():
        column = Column(name, f"byte of {name}", "u1", "a file of the teacher's tokenizer")
        file = GrowingArray(column, f"{TOKENIZER_FOLDER}/{name}", target, source.spec)
        file.append(np.frombuffer(data, np.uint8))
        file.close()
    _finish(
        target, [*arrays, *(f"{TOKENIZER_FOLDER}/{name}" for name in tokenizer)], _about(source)
    )
    names = ("sequence", "record", "entry")
    return {f"{n[:-1]}ies" if n[-1] == "y" else f"{n}s": columns.totals[n] for n in names}


class GrowingArray:
    """A zarr array that is written from its first element to its last, in whole blocks."""

    def __init__(self, column: Column, name: str, target: Target, spec: StoreSpec) -> None:
        self._column, self._name, self._target = column, name, target
        is_table = column.is_per_temperature
        self._more = (len(spec.temperatures),) if is_table else ()
        self._names = (column.axis, "temperature") if is_table else (column.axis,)
        self._chunk = _CHUNK_LENGTHS.get(column.axis, _CHUNK_LENGTH)
        self._block = self._chunk * _CHUNKS_OF_BLOCK
        self._held: list[Array] = []
        self._held_length = self._written = 0
        self._array: zarr.Array[Any] | None = None

    def append(self, values: Array) -> None:
        """Append elements; they are written as soon as they fill a block."""
        self._held.append(np.asarray(values, self._column.dtype))
        self._held_length += len(values)
        if self._held_length >= self._block:
            joined = np.concatenate(self._held)
            whole = len(joined) - len(joined) % self._block
            self._write(joined[:whole])
            self._held, self._held_length = [joined[whole:].copy()], len(joined) - whole

    def close(self) -> None:
        """Write the elements that do not fill a block."""
        empty = np.zeros((0, *self._more), self._column.dtype)
        self._write(np.concatenate([empty, *self._held]))

    def _write(self, values: Array) -> None:
        if self._array is None:
            self._array = self._target.retried(lambda: self._create(len(values)))
        array, start, stop = self._array, self._written, self._written + len(values)

        def write() -> None:
            if array.shape[0] != stop:
                array.resize((stop, *self._more))
            if len(values):
                array[start:stop] = values

        self._target.retried(write)
        self._written = stop

    def _create(self, length: int) -> "zarr.Array[Any]":
        column = self._column
        chunk = min(self._chunk, max(length, 1))  # of a small array, what it has
        shuffle: Any = "shuffle" if column.dtype == "f4" else "bitshuffle"
        return zarr.create_array(
            self._target.store(self._name),
            shape=(length, *self._more),
            chunks=(chunk, *self._more),
            shards=(self._block if chunk == self._chunk else chunk, *self._more),
            dtype=column.dtype,
            fill_value=0,
            compressors=[BloscCodec(cname="zstd", clevel=5, shuffle=shuffle), Crc32cCodec()],
            attributes=dict(column.attributes),
            dimension_names=self._names,
            overwrite=True,  # what an attempt left whose answer was lost
            config={"write_empty_chunks": True},
        )


def _finish(target: Target, arrays: list[str], attributes: dict[str, Any]) -> None:
    """Write the groups' metadata, the root's last and with that of all arrays consolidated in it.

    xarray then opens the whole by one file; zarr's own way writes the root twice, so it is made in
    memory first.
    """
    files = {f"{name}/{GROUP_MEMBER}" for name in arrays}
    known: dict[str, AnyBuffer] = {
        name: Buffer.from_bytes(target.read(name, _MAX_METADATA)) for name in files
    }
    store = MemoryStore(known)
    about = {"long_name": "the teacher's tokenizer, a file an array"}
    with warnings.catch_warnings():  # that other programs may not know consolidated metadata
        warnings.simplefilter("ignore")
        zarr.create_group(store, attributes=attributes)
        zarr.create_group(store, path=TOKENIZER_FOLDER, attributes=about)
        zarr.consolidate_metadata(store)
    for name in (f"{TOKENIZER_FOLDER}/{GROUP_MEMBER}", GROUP_MEMBER):
        target.write(name, known[name].to_bytes())


def _about(source: LogitStore) -> dict[str, Any]:
    """Return the attributes of the group."""
    teacher = source.spec.teacher
    return {
        "title": f"Predictions of {teacher['architecture']} for {source.plan.rows:,} rows of text",
        "how_to_read": list(HOW_TO_READ),
        "logitstore": {
            "export_version": EXPORT_VERSION,
            "content": vars(source.spec.without_hidden()),
            "provenance": source.provenance,
            "dataset_sha256": source.plan.dataset_sha256,
            "plan_sha256": source.plan.digest,
            "rows": source.plan.rows,
            "fidelity": asdict(source.fidelity),
        },
    }
