"""Check one shard: its digest, its line of the index and, on request, every value in it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from logitstore.checking.hidden import hidden
from logitstore.checking.nonsense import known_unknowns, nonsense
from logitstore.checking.report import Damage
from logitstore.checking.text_check import TextCheck
from logitstore.errors import CorruptStoreError
from logitstore.format.spec import (
    HIDDEN_FOLDER,
    INDEX_FILE,
    SHARDS_FOLDER,
    StoreHeader,
    shard_name,
)
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import ShardCache
from logitstore.reading.shard_head import index_line
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath


@dataclass
class ShardCheck:
    """Checks shards of a store, one at a time. Can be sent to another process.

    Attributes:
        path: The store.
        header: What its `store.json` says.
        deep: Whether everything is decoded and its values are checked, too.
        by_zarr: Whether zarr decodes the arrays, too, and both are compared.
        tokenizer: The folder of its tokenizer; None: ids are not compared with the text.
    """

    path: StorePath
    header: StoreHeader
    deep: bool
    by_zarr: bool
    tokenizer: Path | None

    def __call__(self, index: int, line: Mapping[str, Any] | None) -> list[Damage]:
        """Return all damage of a shard; `line` is what the index says of it, if there is one."""
        name = f"{SHARDS_FOLDER}/{shard_name(index)}"
        first, stop = self.header.plan.shard_rows(index)
        try:
            shard = _opened(self.path / name, self.header, index)
            shard.archive.check_digest()
            for member in shard.archive.names if self.deep else ():
                shard.archive.check_member(member)
            damaged = [*_check_index(shard, index, line), *self._check_states(shard)]
        except CorruptStoreError as e:
            return [Damage(name, e.rows or (first, stop - 1), str(e), e.kind)]
        faults = list(_read_all(shard, self._text)) if self.deep else []
        if self.by_zarr and not faults:
            faults = list(_read_by_zarr(shard, self.header, index))
        return damaged + [Damage(name, *fault) for fault in faults]

    def _check_states(self, shard: Shard) -> Iterator[Damage]:
        """Yield the damage of the hidden states beside a shard, if there should be any."""
        if self.header.spec.hidden is None:
            return
        try:
            if self.deep:
                shard.hidden.check()
            else:
                shard.hidden.archive.check_digest()
        except CorruptStoreError as e:
            name = f"{HIDDEN_FOLDER}/{shard.hidden_file[0].name}"
            yield Damage(name, e.rows or shard.rows, str(e), e.kind)

    @cached_property
    def _text(self) -> TextCheck | None:
        if self.tokenizer is None:
            return None
        return TextCheck.from_folder(self.tokenizer, self.header.spec.boundaries_of is not None)


def _opened(path: StorePath, header: StoreHeader, index: int) -> Shard:
    """Open a shard; one in a bucket is downloaded again, whatever the cache holds."""
    if not isinstance(path, RemotePath):
        return Shard(path, header.spec, header.plan, index)
    store: RemotePath = path.parent.parent

    def fetched(beside: StorePath, *_: object) -> BinaryIO:
        """Fetch an object into a file."""
        return ShardCache.chosen().download(store / beside.parent.name / beside.name)[0]

    return Shard(path, header.spec, header.plan, index, fetched(path), beside=fetched)


def _check_index(shard: Shard, index: int, line: Mapping[str, Any] | None) -> Iterator[Damage]:
    expected = index_line(shard, index)
    if line is None or line == expected:
        return
    if line["sha256"] != expected["sha256"]:
        name, rows = f"{SHARDS_FOLDER}/{shard_name(index)}", shard.rows
        yield Damage(name, rows, "is not the shard this store was sealed with")
    else:
        yield Damage(INDEX_FILE, None, f"does not say what shard {index} says of itself")


def _read_all(shard: Shard, check: TextCheck | None) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield (rows, reason) for every sequence that cannot be read or has impossible values."""
    ends: dict[int, tuple[int, int]] = {}  # row -> (its parts so far, supervised bytes so far)
    supervised, statuses = 0, Counter[str]()
    for i in range(len(shard)):
        try:
            line, records = shard.text(i), shard.records(i)
        except CorruptStoreError as e:
            yield e.rows or shard.rows, str(e)
            continue
        statuses[line.status] += 1
        begin = line.supervised_start
        end = begin + len(line.supervised_bytes)
        part, so_far = ends.get(line.row, (0, 0))
        if line.part != part or begin < so_far:
            yield (line.row, line.row), f"part {line.part} overlaps the part before it"
        ends[line.row] = (line.part + 1, end)
        supervised += end - begin
        for reason in nonsense(records, shard.spec, begin, end):
            yield (line.row, line.row), reason
        if check is not None and (reason_ := check.disagreement(line, records)):
            yield (line.row, line.row), f"ids and text disagree: {reason_}"
    if sum(statuses.values()) == len(shard):  # else their damage is known
        yield from _check_together(shard)
    lost = sorted(set(range(shard.rows[0], shard.rows[1] + 1)) - ends.keys())
    if lost:
        yield (lost[0], lost[-1]), f"{len(lost)} rows have no line"
    elif supervised != shard.about["supervised_bytes"]:
        yield shard.rows, "the supervised bytes do not add up to what the shard says"
    elif statuses != Counter(shard.about["statuses"]):
        yield shard.rows, "the statuses of its lines are not those that the shard says"


def _check_together(shard: Shard) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield (rows, reason) for what is wrong with sequences that are readable one by one."""
    try:
        shard.sequence_rows()  # are in order
        for reason in (*known_unknowns(shard), *hidden(shard)):
            yield shard.rows, reason
    except CorruptStoreError as e:
        yield e.rows or shard.rows, str(e)


def _read_by_zarr(
    shard: Shard, header: StoreHeader, index: int
) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield (rows, reason) for every array that zarr does not decode as this package does."""
    from logitstore.checking.by_zarr import disagreements  # here: zarr is slow to import

    for reason in disagreements(shard, header, index):
        yield shard.rows, f"{reason}, unlike this program. One of the two is wrong: report it"
