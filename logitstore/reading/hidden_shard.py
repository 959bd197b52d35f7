"""Read the hidden states of one shard's sequences (`format/hidden_shard.py` lays them out)."""

from collections.abc import Callable, Sequence
from typing import BinaryIO, TypeVar

import numpy as np

from logitstore.errors import CorruptStoreError
from logitstore.format.hidden import EncodedStates, HiddenSpec, Rows
from logitstore.format.hidden_codec import check_rows
from logitstore.format.hidden_shard import hidden_arrays, open_hidden_arrays, read_hidden_group
from logitstore.format.hidden_states import HiddenStates
from logitstore.format.limits import total
from logitstore.format.numpy_types import F32, I64, Array
from logitstore.format.shard_group import ShardSize
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zip_archive import Archive
from logitstore.reading.damage import damaged
from logitstore.storage.paths import StorePath

T = TypeVar("T")


class HiddenShard:
    """The hidden states of a shard. Opening checks all headers, reading the bytes that it needs.

    Args:
        path: The file or object.
        spec: The store's.
        plan: The store's.
        index: The shard's number.
        shard: What the shard itself holds.
        digest: The digest by which the shard pins this file.
        file: Its bytes, where `path` is an object; closed here.

    Raises:
        CorruptStoreError: It is missing, damaged, or another shard's.
    """

    def __init__(
        self,
        path: StorePath,
        spec: StoreSpec,
        plan: Plan,
        index: int,
        shard: ShardSize,
        digest: str,
        file: BinaryIO | None = None,
    ) -> None:
        first, stop = plan.shard_rows(index)
        self.path, self.rows = path, (first, stop - 1)
        assert spec.hidden is not None
        self._hidden: HiddenSpec = spec.hidden
        self._vocab_size = spec.vocab_size
        try:
            self.archive = Archive(path, file)
            _check_digest(self.archive, digest)
            self.size = read_hidden_group(self.archive, spec, plan, index, shard)
            self._arrays = open_hidden_arrays(self.archive, self._hidden, self.size)
            self._empty = {
                s.name: np.zeros((0, *s.shape[1:]), s.dtype)
                for s in hidden_arrays(self._hidden, self.size)
            }
            self._states = self._offsets("sequence_states", self.size.states)
            self._records = self._states
            if self._hidden.context:
                self._records = self._offsets("sequence_records", self.size.records)
        except CorruptStoreError as e:
            why = str(e).removeprefix(f"{path}: ")
            raise damaged(path, self.rows, why, e.kind) from None
        except (ValueError, KeyError, TypeError) as e:
            raise damaged(path, self.rows, str(e)) from None

    def encoded(self, i: int, records: int, token_ids: Array) -> EncodedStates:
        """Read the states of sequence i as they are stored.

        Args:
            i: The place of the sequence in the shard.
            records: How many records it has.
            token_ids: Their tokens, of which the embeddings are read, too.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        return self._checked(lambda: self._encoded(i, records, token_ids))

    def states(self, i: int, records: int, token_ids: Array) -> HiddenStates:
        """Read the states of sequence i, to be decoded later; the arguments are those of `encoded`.

        Raises:
            CorruptStoreError: Bytes it needs are damaged.
        """
        return HiddenStates(self.encoded(i, records, token_ids))

    def check(self) -> None:
        """Decode everything, and check its values.

        Raises:
            CorruptStoreError: Something is damaged, or cannot be.
        """

        def check() -> None:
            self.archive.check_digest()
            for name in self.archive.names:
                self.archive.check_member(name)
            lengths = np.diff(self._records)
            for i, records in enumerate(lengths.tolist()):
                self._encoded(i, records, np.zeros(0, np.uint32))
            read = self._some("state_ids", [(0, self.size.states)])
            if len(read) and int(read.max()) >= self._vocab_size:
                raise ValueError("it has a state of a token that the teacher has not")
            if self._hidden.embedding_width is None:
                return
            ids = self._known_ids()
            for start in range(0, len(ids), 4096):
                part = [(start, min(start + 4096, len(ids)))]
                self._rows("embedding", part)

        self._checked(check)

    def _encoded(self, i: int, records: int, token_ids: Array) -> EncodedStates:
        start, stop = self._states[i : i + 2].tolist()
        first, end = self._records[i : i + 2].tolist()
        if end - first != records:
            raise ValueError(f"sequence {i} has {records} records, and states of {end - first}")
        ids, last = self._some("state_ids", [(start, stop)]), self._rows("last", [(start, stop)])
        found = Rows(*last)
        places = None
        if self._hidden.context:
            places = self._some("places", [(first, end)])
            if len(places) and int(places.max()) >= stop - start:
                raise ValueError(f"sequence {i} has a record of a state that it has not")
        if self._hidden.embedding_width is None:
            return EncodedStates(ids, found, places)
        wanted = np.unique(np.concatenate([ids, token_ids.astype(np.uint32)]))
        return EncodedStates(ids, found, places, wanted, self._embeddings(wanted))

    def _embeddings(self, wanted: Array) -> Rows:
        known = self._known_ids()
        at = np.searchsorted(known, wanted)
        if (at >= len(known)).any() or not np.array_equal(known[at], wanted):
            raise ValueError("embedding_ids lacks a token that it has states of")
        cuts = np.flatnonzero(np.diff(at) != 1) + 1
        runs = [(int(part[0]), int(part[-1]) + 1) for part in np.split(at, cuts) if len(part)]
        return Rows(*self._rows("embedding", runs))

    def _known_ids(self) -> Array:
        known = self._some("embedding_ids", [(0, self.size.embeddings)])
        if (np.diff(known.astype(np.int64)) <= 0).any():
            raise ValueError("embedding_ids do not ascend")
        return known

    def _rows(self, name: str, spans: Sequence[tuple[int, int]]) -> tuple[Array, F32 | None]:
        scale = self._some(f"{name}_scale", spans) if self._hidden.has_scales else None
        codes = self._some(name, spans)
        check_rows(codes, scale)
        return codes, scale

    def _some(self, name: str, spans: Sequence[tuple[int, int]]) -> Array:
        """Read some rows of an array, unless a few bytes declare that they are many."""
        reader = self._arrays.get(name)
        if reader is None:  # an array without elements has no member
            return self._empty[name]
        total(reader.cost(start, stop) for start, stop in spans).check()
        return reader.gather(spans)

    def _offsets(self, name: str, count: int) -> I64:
        offsets = self._arrays[name][slice(0, self.size.sequences + 1)].astype(np.int64)
        if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name} does not divide {count} among the sequences")
        return offsets

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except CorruptStoreError:
            raise
        except ValueError as e:
            raise damaged(self.path, self.rows, str(e)) from None


def _check_digest(archive: Archive, digest: str) -> None:
    if archive.digest != digest:
        raise ValueError(f"it is not the file that the shard names ({digest[:12]}…)")
