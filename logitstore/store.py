"""Read a store: a folder (or a bucket) of shards, as one sequence of records.

    store = open_store("my-store")
    records = store[0]              # TokenRecords: numpy arrays
    text = store.text(0)            # SequenceText

What happens on `store[i]`, module by module:

1. `shard_table.py` finds the shard of sequence i, and the sequence's place in it. It knows how many
   sequences each shard has from the index, read once, or from the shards' ends.
2. `open_shards.py` returns the shard. When it is first opened, its file is opened (for `s3://…` it
   is fetched whole into a cache that all processes of the machine share), and its digest is
   compared with the index. A bounded number of shards stays open.
3. `shard.py`, on opening, checks every header: the zip directory, what the shard says of itself,
   and each array's metadata and chunk index. No chunk is decoded yet.
4. `sequences.py` looks up where the sequence lies among the shard's records, entries and draws,
   decodes only the chunks that it needs (each has a checksum), and turns distances into values.
5. `fields.py` turns codes into log-probabilities: entries and tail of each record sum to one again.

Opening a store reads `store.json`, one listing and (of a finished store) the index. Each process
opens files and starts threads of its own, so a store may be pickled to, or forked into, data loader
workers. Every byte that is returned has passed a checksum; bytes that fail theirs are an error
which names the row, and nothing is returned in their place.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from logitstore.console.argument_types import typed
from logitstore.console.counts import counted
from logitstore.errors import (
    IncompleteStoreError,
    MismatchError,
    WrongTypeError,
    check_installed,
)
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fidelity import Fidelity
from logitstore.format.hidden_states import HiddenStates
from logitstore.format.index import statuses_of
from logitstore.format.lm_head import LmHead
from logitstore.format.numpy_types import I64
from logitstore.format.shard_group import HIDDEN
from logitstore.format.spec import LM_HEAD_FILE, Plan, StoreHeader, StoreSpec
from logitstore.info import facts, store_html
from logitstore.reading.boundaries import chosen_inside, store_around, stores_inside
from logitstore.reading.bucket import tokenizer_folder
from logitstore.reading.lm_head import lm_head_of
from logitstore.reading.open_shards import OpenShards
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import ShardCache
from logitstore.reading.shard_head import Skimmed
from logitstore.reading.shard_table import ShardTable
from logitstore.records import Entries, Example, SequenceText, TokenRecords
from logitstore.storage.paths import StorePath, store_path

if TYPE_CHECKING:
    import zarr

    from logitstore.reading.torch_dataset import Tensors, TorchDataset
    from logitstore.text.examples import ExampleMaker
    from logitstore.text.shown import ShownSequence

T = TypeVar("T")


@typed("logitstore.open_store")
def open_store(
    path: str | os.PathLike[str] | StorePath,
    *,
    allow_partial: bool = False,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
) -> "LogitStore":
    """Open a store for reading.

    Args:
        path: The store's folder, or its URL (`s3://…`, `hf://…`, whatever fsspec reads).
        allow_partial: Read what an unfinished capture has committed so far, frozen at this moment.
        cache: Of a URL: the folder for shards that were fetched. Default: `$LOGITSTORE_CACHE`, or
            `~/.cache/logitstore`.
        cache_bytes: What it may hold; least recently used shards go first. Default:
            `$LOGITSTORE_CACHE_BYTES`, or 64 GiB.

    Raises:
        NotAStoreError: There is no store at this path.
        FormatError: It is of a newer format version.
        IncompleteStoreError: The capture has not finished, and `allow_partial` is off.
        CorruptStoreError: Files are missing or not what was committed.
        StorageError: The bucket cannot be read: credentials, network, address.
        InputError: A URL of a kind for which a package is missing, or that cannot be a store.
    """
    chosen = ShardCache.chosen(cache, cache_bytes)
    return LogitStore(path, allow_partial=allow_partial, cache=chosen)


class LogitStore:
    """A store, opened by `open_store`. Indexing gives the records of a sequence.

    Attributes:
        path: The folder, or the address in a bucket.
        spec: What the records mean.
        plan: Which rows are in which shard.
        provenance: Names and paths of how it was made; for people, not checked.
        is_complete: Whether the capture finished.
        shards: Numbers of the shards that can be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | StorePath,
        *,
        allow_partial: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        self.path = path = store_path(path)
        self.cache = cache or ShardCache.chosen()
        header = StoreHeader.read(path)
        self.spec: StoreSpec = header.spec
        self.plan: Plan = header.plan
        self.provenance = header.provenance
        self._table = ShardTable(path, self.spec, self.plan, self.cache)
        self._shards = OpenShards(self._table, self.cache)
        self._allow_partial = allow_partial
        self._table.check_header(header)
        self.is_complete = self._table.is_complete
        self.shards: Sequence[int] = self._table.numbers
        if not self.is_complete and not allow_partial:
            raise IncompleteStoreError(
                f"{path}: holds {self.rows_held:,} of {counted(self.plan.rows, 'row')}; the "
                "capture has not finished. Run the same `logitstore capture …` again to resume it, "
                "or use what is there with --allow-partial."
            )

    def __len__(self) -> int:
        return int(self._table.first_sequence[-1])

    def _repr_html_(self) -> str:
        """Show `logitstore info` in a notebook, and how to go on."""
        return store_html(self, facts(self))

    def show(self, i: int) -> "ShownSequence":
        """Show sequence i: its text, each token coloured by how surprising the teacher found it.

        In a notebook the text, and below it each token with its numbers and what the teacher
        expected in its place; in a terminal the same as `logitstore show` prints.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged.
        """
        from logitstore.text.shown import ShownSequence

        return ShownSequence(self, i)

    def __getitem__(self, i: int) -> TokenRecords:
        """Read the records of sequence i; of length 0 where the row has none.

        Raises:
            IndexError: There is no such sequence.
            TypeError: It is no number: several are read by `read_many`.
            CorruptStoreError: Its bytes are damaged; other sequences may still be whole.
        """
        asked: object = i
        if isinstance(asked, slice | str):
            raise WrongTypeError(
                f"a store is asked for one sequence by its number, not by {asked!r}. For several: "
                "store.read_many(range(0, 2))."
            )
        return self._with_sidecar(i, self._read(i, Shard.records))

    def __iter__(self) -> Iterator[TokenRecords]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "unfinished"
        return f"LogitStore({str(self.path)!r}, {counted(len(self), 'sequence')}, {state})"

    def read_many(self, indices: Iterable[int]) -> list[TokenRecords]:
        """Read the records of several sequences, in the order asked for; faster than one by one.

        Sequences of a shard are decoded together, no chunk twice, and a larger number on several
        cores (but not in a process that multiprocessing started, such as a data loader's). Arrays
        are slices of the same memory, which stays as long as any of them does.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Bytes of one of them are damaged.
        """
        asked = list(indices)
        self.fetch_ahead(asked)
        read = self._shards.read_many([self.locate(i) for i in asked])
        return [self._with_sidecar(i, each) for i, each in zip(asked, read, strict=True)]

    def entries(self, i: int) -> Entries:
        """Read the entries of sequence i without the rest of its records: half of the work.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Bytes it needs are damaged.
        """
        return self._read(i, Shard.entries)

    def states(self, i: int) -> HiddenStates:
        """Read the teacher's hidden states of sequence i; `store[i].hidden` has those of records.

        Raises:
            MismatchError: The store was captured without them.
            IndexError: There is no such sequence.
            CorruptStoreError: Bytes it needs are damaged.
        """
        if self.spec.hidden is None:
            raise MismatchError(
                f"{self.path}: captured without --hidden, so without the teacher's hidden states. "
                "Run `logitstore capture …` again with --hidden last."
            )
        return self._read(i, Shard.states)

    def lm_head(self) -> LmHead:
        """Read the teacher's output embedding, which makes logits of `states(i)`: all of it.

        Raises:
            MismatchError: The store was captured without it.
            CorruptStoreError: It is missing or damaged.
        """
        if not self.spec.has_head:
            raise MismatchError(
                f"{self.path}: captured without --with-lm-head, so without the teacher's output "
                "embedding. Run `logitstore capture …` again with --hidden last --with-lm-head."
            )
        return lm_head_of(self.path, self.spec)

    def _with_sidecar(self, i: int, records: TokenRecords) -> TokenRecords:
        if self.spec.hidden is None:
            return records
        return replace(records, sidecar=partial(self.states, i))

    def text(self, i: int) -> SequenceText:
        """Read the text of sequence i, and the dataset row that it comes from.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged.
        """
        return self._read(i, Shard.text)

    def example(self, i: int) -> Example:
        """Read sequence i as a model reads it: every token, and which of them have records.

        Needs `transformers`, which loads the teacher's tokenizer from the store, once. Of a
        conversation the tokens are all that the teacher's chat template wrote.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged.
            InputError: The tokenizer cannot be loaded; the records are at a student's boundaries.
            MissingLibraryError: transformers is not installed.
            MismatchError: These versions of transformers read the tokenizer as another one.
        """
        return self.examples([i])[0]

    def examples(self, indices: Iterable[int]) -> list[Example]:
        """Read several sequences as `example` does, in the order asked for; faster by far.

        Raises:
            LogitStoreError, IndexError: As for `example`.
        """
        asked, maker = list(indices), self._maker
        return [maker.make(i, read) for i, read in zip(asked, self.read_many(asked), strict=True)]

    @typed("LogitStore.torch")
    def torch(self, *, k: int | None = None, seed: int | None = None) -> "TorchDataset":
        """Make a dataset that torch's `DataLoader` takes as it is, without a collate function.

        Its items are the sequences with records, as dicts of tensors, padded to the longest of
        their batch: `input_ids`, `attention_mask`, `labels` (-100 without a record), `loss_mask`
        (B, L); at each token with a record, and 0 at others, `token_logprob`, `tail_logmass`,
        `entropy` and what else the store has (B, L, …); `entry_ids`, `entry_logprobs` and
        `entry_mask` (B, L, K), where slots without an entry have -100, -inf and False; `sequence`
        and `row` (B,). What is at position p is compared with the logits of position p - 1.
        `DataLoader(store)` does the same in the store's order.

        Args:
            k: Entries of a token at most; the others' mass goes into the tail. Default: all.
            seed: Shuffle by this seed, the same on every machine; `set_epoch` shuffles anew.
                Default: the store's order.

        Raises:
            InputError: `k` is below 1.
            MissingLibraryError: torch is not installed.
        """
        check_installed("torch", "a dataset of tensors")
        from logitstore.reading.torch_dataset import TorchDataset

        return TorchDataset(self, k=k, seed=seed)

    def __getitems__(self, indices: Sequence[int]) -> "list[Tensors]":
        """Read a batch as `torch()` does, of any sequences; torch's `DataLoader` calls this."""
        from logitstore.reading.torch_dataset import padded

        return padded(list(indices), self.examples(indices))

    @cached_property
    def _maker(self) -> "ExampleMaker":
        check_installed("transformers", f"{self.path}: reading whole examples")
        from logitstore.text.examples import ExampleMaker

        return ExampleMaker.from_folder(self.tokenizer_path, self.spec, self.path, self.text)

    def encoded(self, i: int) -> EncodedRecords:
        """Read sequence i in encoded form, to be stored again without any change.

        Raises:
            IndexError: There is no such sequence.
            CorruptStoreError: Its bytes are damaged.
        """
        return self._read(i, Shard.encoded)

    def shard(self, index: int) -> Shard:
        """Open shard number `index`, which checks its headers.

        Raises:
            CorruptStoreError: The shard is damaged.
        """
        return self._shards.opened(index)

    def locate(self, i: int) -> tuple[int, int]:
        """Find sequence i: the number of its shard, and its place in it.

        Raises:
            IndexError: There is no such sequence.
        """
        return self._table.find_sequence(i)

    def read_shard(self, index: int, read: Callable[[Shard], T]) -> T:
        """Read something of a shard, and once more where the cause of a failure can be fixed.

        Raises:
            CorruptStoreError: The shard is damaged.
        """
        return self._shards.read_shard(index, read)

    @property
    def zarr(self) -> "zarr.Group":
        """The arrays of all shards as they are stored, as a read-only zarr group.

        One subgroup a shard: `store.zarr["00000/token_ids"][:]`. Bytes are checked before zarr
        sees them (see `zarr_view.py`); what they mean is in section 5 of FORMAT.md. Of a compact
        store, zarr warns that its codec (pcodec) is not in the zarr specification.

        Raises (what is read from the group, too):
            CorruptStoreError: Bytes are damaged, or decode to far more than is stored of them.
            MissingLibraryError: The store is compact, and pcodec is not installed.
            InputError: The group is written to.
        """
        from logitstore.reading.zarr_view import open_zarr

        return open_zarr(self)

    def row(self, r: int) -> list[int]:
        """List the sequences that are the parts of dataset row r, in order.

        Raises:
            IndexError: The dataset has no such row, or its shard is not written yet.
        """
        index = self._table.shard_of_row(r)
        first = self.first_sequence(index)
        return [first + int(i) for i in np.flatnonzero(self.shard(index).sequence_rows() == r)]

    def first_sequence(self, index: int) -> int:
        """Return the number of the first sequence of shard `index`."""
        return int(self._table.first_sequence[self._table.position(index)])

    def fetch_ahead(self, indices: Iterable[int]) -> None:
        """Begin to fetch the shards of these sequences if the store is in a bucket, and return.

        What was asked for before and has not begun is dropped. For a folder, nothing happens.
        """
        self._shards.fetch_ahead(indices)

    @property
    def rows_held(self) -> int:
        """The number of dataset rows in the shards that exist."""
        return self._table.rows_held

    @property
    def tokenizer_path(self) -> Path:
        """A folder with the files of the teacher's tokenizer, each compared with its digest.

        It has no others: of a store in a bucket, or of one with files beside them, it is a copy.

        Raises:
            CorruptStoreError: A file is not what was committed.
            StorageError: The object store, or the disk, fails.
        """
        return tokenizer_folder(self.path, self.spec, self.cache)

    @cached_property
    def boundaries(self) -> "dict[str, LogitStore]":
        """The records at the boundaries of students: a store each, by tokenizer fingerprint.

        An unfinished one is there too; its `is_complete` says so.

        Raises:
            MismatchError: One of them does not belong to this store.
            CorruptStoreError: Files are missing or not what was committed.
            StorageError: The file system or the bucket fails.
        """
        return stores_inside(self, self._beside)

    def boundaries_of(self, fingerprint: str, name: str = "this student") -> "LogitStore":
        """Return the records at the boundaries of one student, as a store of the same rows.

        Args:
            fingerprint: Of the student's tokenizer.
            name: The student, for messages.

        Raises:
            MismatchError: There are none, or only those of other students.
            IncompleteStoreError: Their capture has not finished, and `allow_partial` is off.
        """
        inside, allowed = self.boundaries, self._allow_partial
        return chosen_inside(self.path, inside, fingerprint, name, allow_partial=allowed)

    @cached_property
    def outer(self) -> "LogitStore":
        """The store around this one, whose records at a student's boundaries it holds.

        Raises:
            MismatchError: It lies in no store that it belongs to.
            IncompleteStoreError: The store around it lacks shards that it has.
        """
        return store_around(self, self._beside)

    def _beside(self, path: StorePath) -> "LogitStore":
        return LogitStore(path, allow_partial=True, cache=self.cache)

    def sequences_of_shards(self) -> dict[int, int]:
        """Count the sequences of each shard that can be read."""
        counts = np.diff(self._table.first_sequence).tolist()
        return dict(zip(self.shards, counts, strict=True))

    def read_around(self, indices: Iterable[int]) -> list[TokenRecords]:
        """Read the records that the store around this one has of the same sequences.

        Raises:
            IndexError: There is no such sequence.
            MismatchError: This store lies in none that it belongs to.
            CorruptStoreError: Bytes of one of them are damaged.
        """
        numbers = []
        for shard, place in map(self.locate, indices):
            numbers.append(self.outer.first_sequence(shard) + place)
        return self.outer.read_many(numbers)

    @property
    def digest(self) -> str:
        """The identity of what the store holds: same digest, same content settings and rows."""
        return self._table.digest

    def largest_tail(self, index: int) -> float:
        """Find the largest tail of any record of a shard: the probability beyond its entries.

        Raises:
            CorruptStoreError: The shard is damaged.
        """
        return self.shard(index).largest_tail()

    @property
    def token_counts(self) -> I64:
        """(sequences,) records of each; a few kilobytes of every shard are read, once."""
        return self._table.token_counts

    @property
    def sequence_rows(self) -> I64:
        """(sequences,) the dataset row of each; where rows have windows, text is read for it."""
        return self._table.sequence_rows

    @property
    def statuses(self) -> dict[str, int]:
        """The number of sequences by status: ``ok``, or why some of the text has no records."""
        return statuses_of(self.shard_facts)

    def first_rows(self) -> dict[str, int]:
        """Find the first dataset row of every status but ``ok``; none of a store in a bucket.

        At most one shard a status is opened for it, which for a bucket would fetch it whole.

        Raises:
            CorruptStoreError: The lines of a shard are damaged.
        """
        found: dict[str, int] = {}
        if self.path.is_remote:
            return found
        for index, about in zip(self.shards, self.shard_facts, strict=True):
            if statuses_of([about]).keys() - found.keys() - {"ok"}:
                found = self.read_shard(index, Shard.first_rows) | found
        return {status: row for status, row in found.items() if status != "ok"}

    @property
    def shard_facts(self) -> Sequence[Mapping[str, Any]]:
        """The index: one dict a shard (rows, counts, bytes, digest, fidelity)."""
        return self._table.facts

    def skim(self, index: int) -> Skimmed:
        """Read what a shard says of itself from its last bytes, without fetching or mapping it.

        Raises:
            CorruptStoreError: It is not the shard that it must be.
        """
        return self._table.checked_skim(index)

    @cached_property
    def fidelity(self) -> Fidelity:
        """How exact the store is, measured when it was written."""
        return Fidelity.of(self.shard_facts)

    def member_bytes(self) -> list[dict[str, int]]:
        """Count, for each shard, the bytes of each array and of the text."""
        return self._table.for_each_shard(lambda i: self._table.skim(i).member_bytes())

    @property
    def hidden_bytes(self) -> int:
        """The bytes of the files with hidden states; 0 where there are none."""
        if self.spec.hidden is None:
            return 0
        sizes = self._table.for_each_shard(lambda i: int(self.skim(i).about[HIDDEN]["bytes"]))
        return sum(sizes)

    @property
    def lm_head_bytes(self) -> int:
        """The bytes of the file with the teacher's output embedding; 0 where there is none yet."""
        path = self.path / LM_HEAD_FILE
        return path.size_bytes() if self.spec.has_head and path.exists() else 0

    def _read(self, i: int, read: Callable[[Shard, int], T]) -> T:
        return self._shards.read_sequence(*self._table.find_sequence(i), read)
