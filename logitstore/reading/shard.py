"""One immutable shard, read through a memory map (`shard_builder.py` makes it).

00000.zarr.zip      (see zip_archive.py for the bytes around the members)
  zarr.json                 group; its attributes say what the shard is and how much it holds
  <array>/zarr.json, <array>/c/0
  rows.parquet              the text, one line a sequence
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from logitstore.errors import CorruptStoreError
from logitstore.format.chunk_codecs import INSTEAD_OF_PCODEC
from logitstore.format.encoded import EncodedRecords
from logitstore.format.limits import check_ratio
from logitstore.format.logprob_codec import NEG_INF_CODE, TAIL_STEP
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.rows_parquet import LinesReader
from logitstore.format.shard_arrays import array_specs
from logitstore.format.shard_group import (
    GROUP_MEMBER,
    checked_size,
    read_group,
)
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zarr_arrays import ArrayReader, ArraySpec, array_metadata
from logitstore.format.zip_archive import Archive
from logitstore.reading.sequences import SequenceReader
from logitstore.records import Entries, SequenceText, TokenRecords
from logitstore.storage.paths import StorePath


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
            self._sequences = SequenceReader(spec, self.size, self._arrays, self._offsets)
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
            return self._sequences.records([i])[0]
        except ValueError as e:
            self._raise(str(e), self._row_of(i))

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
        try:
            self._sequences.records([i])  # everything that is checked of a sequence
            return self._sequences.encoded(i)
        except ValueError as e:
            self._raise(str(e), self._row_of(i))

    def entries(self, i: int) -> Entries:
        """The entries alone of sequence i.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        try:
            return self._sequences.entries([i])[0]
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
                codes = self._arrays["tail_logmass"][start:stop]
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
            line = self._lines[i]
        except ValueError as e:
            self._raise(f"{LINES_MEMBER}: {e}", self.rows)
        first, stop = self._rows
        is_one_each = len(self) == stop - first  # every row has a line
        if line.row != first + i if is_one_each else not first <= line.row < stop:
            self._raise(f"{LINES_MEMBER}: line {i} is of row {line.row}", self.rows)
        return line

    def sequence_rows(self) -> npt.NDArray[np.int64]:
        """The dataset row of each sequence."""
        try:
            rows = self._lines.rows(*self._rows)
        except ValueError as e:
            self._raise(f"{LINES_MEMBER}: {e}", self.rows)
        return np.array(rows, np.int64)

    def array(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """An array of elements as it is stored, whole or from `start` to `stop`.

        Raises:
            CorruptStoreError: Its bytes are damaged.
        """
        reader = self._arrays[name]
        try:
            return reader[start : reader.spec.shape[0] if stop is None else stop]
        except ValueError as e:
            self._raise(str(e), self.rows)

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
                self._raise(str(e), self.rows)
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
            self._raise(str(e), self.rows)

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
        specs = [self._recognised(s) for s in specs]
        return {s.name: ArrayReader(s, self.archive[s.data_member]) for s in specs if s.chunk_count}

    def _recognised(self, spec: ArraySpec) -> ArraySpec:
        """The spec that the member's text is of: the coding may be one of two."""
        text, others = self.archive[spec.metadata_member], [spec]
        if spec.coding in INSTEAD_OF_PCODEC:
            others.append(replace(spec, coding=INSTEAD_OF_PCODEC[spec.coding]))
        elif self.spec.layout == 2 and spec.name == "entry_ids":
            others.append(replace(spec, coding="shuffle"))
        for one in others:
            if text == array_metadata(one):
                return one
        raise ValueError(f"{spec.metadata_member} does not describe the array it must")

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
