"""Read what a shard says of itself from its end alone: a hundred kilobytes instead of the whole.

The group (`zarr.json`) is the last member of the archive and the directory follows it, so one read
of the end gives sizes, fidelity and digest; with one more of `sequence_records`, the records of
every sequence. So a store of ten thousand shards can be counted, listed and sealed without moving
its entries, be it in a folder or in a bucket. Nothing that a loss reads comes from here.
"""

import json
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from logitstore.errors import CorruptStoreError, StorageError
from logitstore.format.fields import OFFSETS, RECORDS
from logitstore.format.numpy_types import I64
from logitstore.format.rows_parquet import LINE_DIGEST_BYTES, LinesReader
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.shard_arrays import array_specs, read_offsets_of
from logitstore.format.shard_group import read_group
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zarr_arrays import ArrayReader
from logitstore.format.zip_archive import ArchiveEnd
from logitstore.reading.damage import damaged
from logitstore.reading.shard import Shard
from logitstore.storage.paths import StorePath

T = TypeVar("T")


class Skimmed:
    """A shard of which only the end is read.

    Attributes:
        about: What it says of itself: the group's attributes (rows, fidelity, statuses).
        size: How much it holds.
        archive: The directory of its archive.
    """

    def __init__(
        self,
        path: StorePath,
        spec: StoreSpec,
        plan: Plan,
        index: int,
        size_bytes: int | None = None,
    ) -> None:
        """Read the end of the file or object, and check it against spec and plan.

        Args:
            path: The shard's file or object.
            spec: The store's.
            plan: The store's.
            index: The shard's number.
            size_bytes: The size of the file, where it is known: it saves a request.

        Raises:
            CorruptStoreError: It is missing, cut off, or another store's.
            StorageError: The object store fails.
        """
        self.path, self._spec, self._rows = path, spec, plan.shard_rows(index)
        try:
            size = path.size_bytes() if size_bytes is None else size_bytes
            self.archive = ArchiveEnd(size, path.read_range)
            self.about, self.size = read_group(self.archive, spec, plan, index)
        except StorageError:  # from a bucket: the message already says what to do
            raise
        except FileNotFoundError:
            raise self._damaged("it is missing", "missing-file") from None
        except OSError as e:
            raise self._damaged(f"it cannot be read ({e.strerror})") from None
        except (ValueError, KeyError, TypeError) as e:
            raise self._damaged(str(e)) from None
        if self.size.sequences * LINE_DIGEST_BYTES > self.archive.size_bytes:
            raise self._damaged(f"it is too small to hold {self.size.sequences} lines")

    @cached_property
    def token_counts(self) -> I64:
        """(sequences,) records of each sequence.

        Raises:
            CorruptStoreError: Their bytes are damaged.
        """
        specs = {s.name: s for s in array_specs(self._spec, self.size)}
        spec = specs[OFFSETS[RECORDS].name]
        try:
            reader = ArrayReader(spec, self.archive.check_member(spec.data_member))
            return np.diff(read_offsets_of(RECORDS, reader, self.size))
        except (ValueError, KeyError) as e:
            raise self._damaged(str(e)) from None

    @cached_property
    def sequence_rows(self) -> I64:
        """(sequences,) the dataset row of each; the text is read only where rows have several.

        Raises:
            CorruptStoreError: Their bytes are damaged.
        """
        first, stop = self._rows
        if self.size.sequences == stop - first:  # every row has a line
            return np.arange(first, stop, dtype=np.int64)
        try:
            lines = LinesReader(self.archive.check_member(LINES_MEMBER), self.size.sequences)
            return np.array(lines.rows(first, stop), np.int64)
        except (ValueError, KeyError) as e:
            raise self._damaged(f"{LINES_MEMBER}: {e}") from None

    def member_bytes(self) -> dict[str, int]:
        """Count the stored bytes of each array, and of the text, by name."""
        arrays = [s for s in array_specs(self._spec, self.size) if s.chunk_count]
        try:
            sizes = {s.name: self.archive.members[s.data_member].size for s in arrays}
            return sizes | {LINES_MEMBER: self.archive.members[LINES_MEMBER].size}
        except KeyError as e:
            raise self._damaged(f"it has no {e}") from None

    def _damaged(self, why: str, kind: str | None = None) -> CorruptStoreError:
        return damaged(self.path, (self._rows[0], self._rows[1] - 1), why, kind)


def index_line(shard: Shard | Skimmed, index: int) -> dict[str, Any]:
    """Make the index's line of a shard, from what the shard says of itself."""
    about = shard.about
    return {
        "shard": index,
        "first_row": about["rows"][0],
        "stop_row": about["rows"][1],
        "sequences": shard.size.sequences,
        "records": shard.size.records,
        "entries": shard.size.entries,
        "draws": shard.size.draws,
        "supervised_bytes": about["supervised_bytes"],
        "file_bytes": shard.archive.size_bytes,
        "sha256": shard.archive.digest,
        "statuses": json.dumps(about["statuses"], sort_keys=True),
        **{name: about["fidelity"][name] for name in sorted(about["fidelity"])},
    }
