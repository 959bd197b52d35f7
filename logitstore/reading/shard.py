"""Read parts of one shard (`shard_builder.py` makes it).

00000.zarr.zip      (see zip_archive.py for the bytes around the members)
  zarr.json                 group; its attributes say which shard it is and how much it holds
  <array>/zarr.json, <array>/c/0
  rows.parquet              the text, one line a sequence
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import BinaryIO, TypeVar

import numpy as np

from logitstore.errors import CorruptStoreError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import AXIS, RECORDS
from logitstore.format.hidden_states import HiddenStates
from logitstore.format.limits import total
from logitstore.format.logprob_codec import NEG_INF_CODE, TAIL_STEP
from logitstore.format.numpy_types import I64, Array
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.rows_parquet import LinesReader
from logitstore.format.shard_arrays import open_arrays, read_offsets
from logitstore.format.shard_group import HIDDEN, read_group
from logitstore.format.spec import HIDDEN_FOLDER, Plan, StoreSpec, sidecar_name
from logitstore.format.zarr_arrays import ArraySpec, StoredChunk
from logitstore.format.zip_archive import Archive
from logitstore.reading.damage import damaged
from logitstore.reading.hidden_shard import HiddenShard
from logitstore.reading.sequences import SequenceReader
from logitstore.records import Entries, SequenceText, TokenRecords
from logitstore.storage.paths import StorePath

T = TypeVar("T")
#: Opens a file of the same store whose SHA-256 and bytes are known.
OpensBeside = Callable[[StorePath, str, int], BinaryIO]


class Shard:
    """A committed shard. Opening it checks all headers, reading checks the bytes that it needs.

    Attributes:
        size: How much it holds.
        about: What it says of itself: the group's attributes (rows, fidelity, statuses).
    """

    def __init__(
        self,
        path: StorePath,
        spec: StoreSpec,
        plan: Plan,
        index: int,
        file: BinaryIO | None = None,
        *,
        beside: OpensBeside | None = None,
    ) -> None:
        """Open the file and check that it is the shard it should be.

        Args:
            path: The shard's file or object.
            spec: The store's.
            plan: The store's.
            index: The shard's number.
            file: Its bytes, where `path` is an object; closed here.
            beside: Opens another file of the store, where that is an object.

        Raises:
            CorruptStoreError: It is missing, damaged, or another store's.
        """
        self._plan, self._index, self._beside = plan, index, beside
        self.path, self.spec, self._rows = path, spec, plan.shard_rows(index)
        try:
            self.archive = Archive(path, file)
            self.about, self.size = read_group(self.archive, spec, plan, index)
            self._arrays = open_arrays(self.archive, spec, self.size)
            # Before the offsets: the bytes that each line takes bound the number of sequences, and
            # so the memory that offsets may ask for.
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
        """Decode the records of sequence i of this shard.

        Raises:
            CorruptStoreError: Bytes it needs are damaged; other sequences may still be whole.
        """
        return self._one(i, self._sequences.records)

    def records_of(self, places: Sequence[int]) -> list[TokenRecords]:
        """Decode several sequences together; their places must ascend.

        Raises:
            CorruptStoreError: One is damaged; names the first.
        """
        try:
            return self._sequences.records(places)
        except ValueError:  # one by one, to find out which
            return [self.records(i) for i in places]

    def encoded(self, i: int, *, hidden: bool = True) -> EncodedRecords:
        """Read sequence i of this shard in encoded form, to be stored again without any change.

        Its hidden states come along, if there are any and `hidden` asks for them.

        The coding error (`kl`, `l1`, `dropped`) is not stored for single records: it is zero here.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        encoded = self._one(i, self._sequences.encoded)
        if self.spec.hidden is None or not hidden:
            return encoded
        ids = encoded.fields["token_ids"]
        return replace(encoded, hidden=self.hidden.encoded(i, len(encoded), ids))

    @cached_property
    def hidden(self) -> HiddenShard:
        """The hidden states beside the records, opened now.

        Raises:
            CorruptStoreError: Their file is missing, damaged, or another shard's.
            StorageError: The object store, or the disk, fails.
        """
        path, digest, size = self.hidden_file
        file = None if self._beside is None else self._beside(path, digest, size)
        return HiddenShard(path, self.spec, self._plan, self._index, self.size, digest, file)

    @property
    def hidden_file(self) -> tuple[StorePath, str, int]:
        """The file of the hidden states, the SHA-256 that it must have, and its bytes."""
        pinned = self.about[HIDDEN]
        name = sidecar_name(self._index, pinned["sha256"])
        folder = self.path.parent.parent / HIDDEN_FOLDER
        return folder / name, str(pinned["sha256"]), int(pinned["bytes"])

    def states(self, i: int) -> HiddenStates:
        """Read the hidden states of sequence i, which has some.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        start, stop = self.record_offsets[i : i + 2].tolist()
        ids = self.array("token_ids", start, stop) if stop > start else np.zeros(0, np.uint32)
        return self.hidden.states(i, stop - start, ids)

    def entries(self, i: int) -> Entries:
        """Decode the entries of sequence i, without the rest of its records.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        return self._one(i, self._sequences.entries)

    def largest_tail(self) -> float:
        """Find the largest tail of any record, the probability beyond its entries; 0 for none.

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
        """Read the text of sequence i.

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
        """Read the dataset row of each sequence, in order."""
        try:
            rows = self._lines.rows(*self._rows)
        except ValueError as e:
            raise damaged(self.path, self.rows, f"{LINES_MEMBER}: {e}") from None
        return np.array(rows, np.int64)

    def first_rows(self) -> dict[str, int]:
        """Read the first dataset row of every status."""
        try:
            return self._lines.first_rows(*self._rows)
        except ValueError as e:
            raise damaged(self.path, self.rows, f"{LINES_MEMBER}: {e}") from None

    def array(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read an array of elements as it is stored, whole or from `start` to `stop`.

        Raises:
            CorruptStoreError: Its bytes are damaged.
        """
        reader = self._arrays[name]
        try:
            return reader[start : reader.spec.shape[0] if stop is None else stop]
        except ValueError as e:
            raise damaged(self.path, self.rows, str(e)) from None

    def stored_bytes(self, member: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return some bytes of a member of the zarr group as they are stored, checked.

        Raises:
            KeyError: There is no such member.
            MissingLibraryError: The library that decodes them is not installed.
            CorruptStoreError: The chunks that they reach into are damaged, or are not chunks.
        """
        data = self.archive[member]
        name = member.split("/")[0]
        try:
            if name in self._arrays and member == self._arrays[name].spec.data_member:
                self._arrays[name].check_stored(start, len(data) if stop is None else stop)
            return data[start:stop]
        except ValueError as e:
            raise damaged(self.path, self.rows, str(e)) from None

    def check_whole(self) -> None:
        """Reject a shard whose arrays together decode to far more than their stored bytes.

        Reading a sequence checks the same ratio; this is for callers that read whole arrays.

        Raises:
            CorruptStoreError: The shard is such a bomb.
        """
        try:
            total(r.cost(0, r.spec.shape[0]) for r in self._arrays.values()).check()
        except ValueError as e:
            raise damaged(self.path, self.rows, str(e)) from None

    def chunks(self, name: str, i: int) -> Iterator[StoredChunk]:
        """List the stored chunks of an array that sequence i has values in, not decoded.

        Args:
            name: The name of an array along records, entries or draws.
            i: The place of the sequence in this shard.

        Raises:
            CorruptStoreError: Their bytes are damaged.
        """
        start, stop = self._offsets[AXIS[name]][i : i + 2].tolist()
        try:
            yield from self._arrays[name].chunks(start, stop)
        except ValueError as e:
            raise damaged(self.path, self._row_of(i), str(e)) from None

    @property
    def array_specs(self) -> list[ArraySpec]:
        """The arrays that have elements."""
        return [reader.spec for reader in self._arrays.values()]

    def all_chunks(self, name: str) -> Iterator[StoredChunk]:
        """List the stored chunks of a whole array, not decoded.

        Raises:
            CorruptStoreError: Their bytes are damaged.
        """
        reader = self._arrays[name]
        try:
            yield from reader.chunks(0, reader.spec.shape[0])
        except ValueError as e:
            raise damaged(self.path, self.rows, str(e)) from None

    @property
    def record_offsets(self) -> I64:
        """(sequences + 1,) records of sequence i lie from value i up to value i + 1."""
        return self._offsets[RECORDS]

    @property
    def rows(self) -> tuple[int, int]:
        """First and last dataset row of the shard."""
        return self._rows[0], self._rows[1] - 1

    def _one(self, i: int, read: Callable[[Sequence[int]], list[T]]) -> T:
        """Read something of sequence i; an error names its row."""
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
