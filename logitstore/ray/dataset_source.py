"""Read a store with Ray Data: a read task for each shard, a row for each sequence.

Rows have the columns of an export to Parquet (`logitstore.moving.parquet.columns`): where the
sequence comes from, its text, and lists with an item for each of its n records. Two more say what a
model of the teacher's tokenizer reads:

    input_ids   (T,) every token of the sequence, its context and prompt among them
    record_at   (n,) where in `input_ids` each record's token stands; the logits before that place
                are what the record is about

A store has the text and the tokens with records, so `input_ids` are the text tokenised again. They
are null where that gives other tokens than were captured (rows of token ids, some windows of rows
that were split), so whatever is there is right.
"""

import os
from collections.abc import Iterator
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata

from logitstore.format.numpy_types import I64
from logitstore.moving.parquet.columns import Sequence_, schema_of, table_of
from logitstore.moving.parquet.export import groups_of
from logitstore.records import SequenceText, TokenRecords
from logitstore.storage.objects import RemotePath
from logitstore.store import LogitStore, open_store
from logitstore.text.stored import stored_bytes

_INPUTS = {"input_ids": pa.list_(pa.int64()), "record_at": pa.list_(pa.int64())}


def read(
    store: str | os.PathLike[str] | RemotePath, *, input_ids: bool, allow_partial: bool
) -> Dataset:
    """Read a store as a dataset; see `logitstore.ray.dataset`."""
    opened = open_store(store, allow_partial=allow_partial)
    path = str(opened.path)
    whole = os.path.abspath(path) if not opened.path.is_remote else path
    if input_ids:
        _ = _Inputs(opened).tokenizer  # what cannot be read is said here, and not by some node
    source = StoreSource(whole, tuple(opened.shards), allow_partial, input_ids)
    return read_datasource(source, override_num_blocks=max(len(opened.shards), 1))


class StoreSource(Datasource):  # type: ignore[misc]  # ray has no types here
    """A store as a source of Ray Data.

    Args:
        path: The store's whole path, or URL.
        shards: The shards to read.
        allow_partial: Whether it may be unfinished.
        input_ids: Whether to tokenise its text.
    """

    def __init__(
        self, path: str, shards: tuple[int, ...], allow_partial: bool, input_ids: bool
    ) -> None:
        super().__init__()
        self._path, self._shards = path, shards
        self._partial, self._input_ids = allow_partial, input_ids

    def estimate_inmemory_data_size(self) -> int | None:
        """Leave it open: that would take a look at every shard."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """Make a task for each shard, whatever parallelism Ray would like: a shard is opened once.

        Args:
            parallelism: What Ray would like.
        """
        return [
            ReadTask(
                partial(_tables, self._path, index, self._partial, self._input_ids),
                BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None),
            )
            for index in self._shards
        ]

    def get_name(self) -> str:
        """Name the source in Ray's plans."""
        return "LogitStore"


@lru_cache(maxsize=2)
def _opened(path: str, allow_partial: bool) -> tuple[LogitStore, "_Inputs"]:
    """Open a store once for all tasks of a process."""
    store = open_store(path, allow_partial=allow_partial)
    return store, _Inputs(store)


def _tables(path: str, index: int, allow_partial: bool, input_ids: bool) -> Iterator[pa.Table]:
    """Read a shard, some of its sequences at a time."""
    store, inputs = _opened(path, allow_partial)
    count = 0
    for sequences in groups_of(store.shard(index)):
        count += 1
        yield _table(store, sequences, inputs if input_ids else None)
    if not count:
        yield _table(store, [], inputs if input_ids else None)


def _table(store: LogitStore, sequences: list[Sequence_], inputs: "_Inputs | None") -> pa.Table:
    if not sequences:
        table = schema_of(store.spec).empty_table()
    else:
        table = table_of(store.spec, sequences)
    if inputs is None:
        return table
    found = [inputs.of(line, records) for line, records, _ in sequences]
    for i, (name, kind) in enumerate(_INPUTS.items()):
        values = [None if each is None else each[i] for each in found]
        table = table.append_column(name, pa.array(values, kind))
    return table


class _Inputs:
    """Tokenises the text of a store's sequences with the tokenizer that it keeps."""

    def __init__(self, store: LogitStore) -> None:
        self._store = store

    @cached_property
    def tokenizer(self) -> Any:
        """Load it, once."""
        spec, folder = self._store.spec, self._store.tokenizer_path
        found = stored_bytes(folder, str(spec.tokenizer["fingerprint"]), self._store.path)
        return found.with_ends(tuple(spec.tokenizer["eos_ids"]))

    def of(self, line: SequenceText, records: TokenRecords) -> tuple[I64, I64] | None:
        """Find the tokens of a line, and the places of those with records."""
        is_talk = "chat_template_sha256" in self._store.spec.rendering
        wanted = records.token_ids
        if not len(wanted):
            return None
        for add_eos in (False, True):  # a window ends like its row only if it is the last
            text = self.tokenizer.encode(line.segments, add_eos=add_eos, add_prefix=not is_talk)
            at = np.flatnonzero(text.has_record)
            if np.array_equal(text.token_ids[at], wanted):
                return text.token_ids, at
        return None
