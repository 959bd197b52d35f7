"""One immutable shard, read through a memory map (`shard_builder.py` makes it).

00000.zarr.zip      (see zip_archive.py for the bytes around the members)
  zarr.json                 group; its attributes say what the shard is and how much it holds
  <array>/zarr.json, <array>/c/0
  rows.parquet              the text, one line a sequence
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import numpy as np

from logitstore.errors import CorruptStoreError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import AXIS, RECORDS
from logitstore.format.limits import check_ratio
from logitstore.format.logprob_codec import NEG_INF_CODE, TAIL_STEP
from logitstore.format.numpy_types import I64, Array
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.rows_parquet import LinesReader
from logitstore.format.shard_arrays import open_arrays, read_offsets
from logitstore.format.shard_group import read_group
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zarr_arrays import StoredChunk
from logitstore.format.zip_archive import Archive
from logitstore.reading.damage import damaged
from logitstore.reading.sequences import SequenceReader
from logitstore.records import Entries, SequenceText, TokenRecords
from logitstore.storage.paths import StorePath

T = TypeVar("T")


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
            self.about, self.size = read_group(self.archive, spec, plan, index)
            self._arrays = open_arrays(self.archive, spec, self.size)
            # Before the offsets: what a line costs in this file bounds how many there can be.
            self._lines = LinesReader(self.archive[LINES_MEMBER], self.size.sequences)
            self._offsets = read_offsets(self._arrays, self.size)
            self._sequences = SequenceReader(spec, self.size, self._arrays, self._offsets)
        except CorruptStoreError as e:
            why = str(e).removeprefix(f"{path}: ")
            raise damaged(path, self.rows, why, e.kind) from None
        except (ValueError, KeyError, TypeError) as e:
            raise damaged(path, self.rows, str(e)) from None

    def __len__(self) -> int:
        return self.size.sequences

    def records(self, i: int) -> TokenRecords:
        """Sequence i of this shard, decoded.

        Raises:
            CorruptStoreError: Bytes it needs are damaged; other sequences may still be whole.
        """
        return self._one(i, self._sequences.records)

    def records_of(self, places: Sequence[int]) -> list[TokenRecords]:
        """Several sequences, decoded together; positions ascend.

        Raises:
            CorruptStoreError: Of the first that is damaged.
        """
        try:
            return self._sequences.records(places)
        except ValueError:  # which of them was it?
            return [self.records(i) for i in places]

    def encoded(self, i: int) -> EncodedRecords:
        """Sequence i of this shard as it is stored, to be stored again without any change.

        What coding changed (`kl`, `l1`, `dropped`) is not kept for single records: zeros.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        return self._one(i, self._sequences.encoded)

    def entries(self, i: int) -> Entries:
        """The entries alone of sequence i.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        return self._one(i, self._sequences.entries)

    def largest_tail(self) -> float:
        """The most probability that any record leaves outside its entries; 0 without records.

        Raises:
            CorruptStoreError: Its bytes are damaged.
        """
        smallest, step = NEG_INF_CODE, int(self.spec.codec["records_per_chunk"])
        try:
            for start in range(0, self.size.records, step):
                stop = min(start + step, self.size.records)
                codes = self._arrays["tail_logmass"][start:stop]
                smallest = min(smallest, int(codes.min()))
        except ValueError as e:
            raise damaged(self.path, self.rows, str(e)) from None
        return 0.0 if smallest == NEG_INF_CODE else math.exp(-smallest * TAIL_STEP)

    def text(self, i: int) -> SequenceText:
        """The text of sequence i.

        Raises:
            CorruptStoreError: Its bytes are damaged.
        """
        try:
            line = self._lines[i]
        except ValueError as e:
            raise damaged(self.path, self.rows, f"{LINES_MEMBER}: {e}") from None
        first, stop = self._rows
        is_one_each = len(self) == stop - first  # every row has a line
        if line.row != first + i if is_one_each else not first <= line.row < stop:
            why = f"{LINES_MEMBER}: line {i} is of row {line.row}"
            raise damaged(self.path, self.rows, why)
        return line

    def sequence_rows(self) -> I64:
        """The dataset row of each sequence."""
        try:
            rows = self._lines.rows(*self._rows)
        except ValueError as e:
            raise damaged(self.path, self.rows, f"{LINES_MEMBER}: {e}") from None
        return np.array(rows, np.int64)

    def array(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """An array of elements as it is stored, whole or from `start` to `stop`.

        Raises:
            CorruptStoreError: Its bytes are damaged.
        """
        reader = self._arrays[name]
        try:
            return reader[start : reader.spec.shape[0] if stop is None else stop]
        except ValueError as e:
            raise damaged(self.path, self.rows, str(e)) from None

    def stored_bytes(self, member: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Some bytes of a member of the zarr group as they are stored, checked.

        Raises:
            KeyError: There is no such member.
            MissingLibraryError: What decodes them is not installed.
            CorruptStoreError: The chunks that they reach into are damaged, or are not chunks.
        """
        data = self.archive[member]
        name = member.split("/")[0]
        if name in self._arrays and member == self._arrays[name].spec.data_member:
            try:
                self._arrays[name].check_stored(start, len(data) if stop is None else stop)
            except ValueError as e:
                raise damaged(self.path, self.rows, str(e)) from None
        return data[start:stop]

    def check_whole(self) -> None:
        """Reject a shard whose arrays together decode to far more than is stored of them.

        A sequence is held to the same ratio when it is read; this is for who reads whole arrays.

        Raises:
            CorruptStoreError: They do.
        """
        costs = [r.cost(0, r.spec.shape[0]) for r in self._arrays.values()]
        try:
            check_ratio(*map(sum, zip(*costs, strict=True)))
        except ValueError as e:
            raise damaged(self.path, self.rows, str(e)) from None

    def chunks(self, name: str, i: int) -> Iterator[StoredChunk]:
        """List the stored chunks of an array that sequence i has values in, not decoded.

        Args:
            name: Of an array along records, entries or draws.
            i: Which sequence of this shard.

        Raises:
            CorruptStoreError: Their bytes are damaged.
        """
        start, stop = self._offsets[AXIS[name]][i : i + 2].tolist()
        try:
            yield from self._arrays[name].chunks(start, stop)
        except ValueError as e:
            raise damaged(self.path, self._row_of(i), str(e)) from None

    @property
    def record_offsets(self) -> I64:
        """Records of sequence i lie from value i up to value i + 1."""
        return self._offsets[RECORDS]

    @property
    def rows(self) -> tuple[int, int]:
        """First and last dataset row."""
        return self._rows[0], self._rows[1] - 1

    def _one(self, i: int, read: Callable[[Sequence[int]], list[T]]) -> T:
        """Read something of sequence i, or say which row is damaged."""
        try:
            return read([i])[0]
        except ValueError as e:
            raise damaged(self.path, self._row_of(i), str(e)) from None

    def _row_of(self, i: int) -> tuple[int, int]:
        try:
            row = self._lines.rows(*self._rows)[i]
        except (ValueError, IndexError):
            return self.rows
        return row, row
