"""Gather the lines of the index before a store is sealed: on all cores, and from where it stopped.

Every shard is opened and its headers are checked, which takes a millisecond: of two million shards,
forty minutes of one core; and in a bucket, requests. So blocks of shards are read by as many
processes as there are cores, and the lines of each block are kept in the user's cache, with the
stamp that each file or object had before it was read, until the store is sealed. A seal that was
stopped goes on with them; a block of which any shard has another stamp, or none (it was written so
lately that its time may not tell), is read again.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from logitstore.console.progress import progress
from logitstore.format.index import Line, Lines
from logitstore.format.spec import SHARDS_FOLDER, StoreHeader, shard_name
from logitstore.reading.shard_cache import ShardCache
from logitstore.reading.shard_ends import (
    LINES,
    WORTH_PROCESSES,
    blocks_of,
    encode_lines,
    lines_of,
    read_blocks,
    shards_of,
)
from logitstore.storage.commit import temporary
from logitstore.storage.paths import StorePath


def gather_lines(path: StorePath, header: StoreHeader) -> Lines:
    """Make the lines of the index of a store whose shards are all there.

    Raises:
        CorruptStoreError: A shard is not one of this store.
        StorageError: The object store fails.
    """
    shards = range(header.plan.shard_count)
    if len(shards) < WORTH_PROCESSES:
        return Lines.of(lines_of(path, header, shards))
    kept = _Kept(path, header)
    lines = Lines.of(_all_lines(path, header, kept))
    kept.remove()
    return lines


def _all_lines(path: StorePath, header: StoreHeader, kept: "_Kept") -> Iterator[Line]:
    """Yield all lines in order; each block is kept as soon as it is read."""
    count = header.plan.shard_count
    blocks = blocks_of(count)
    wanted = [block for block in blocks if kept.lines(block) is None]
    read = read_blocks(
        path,
        LINES,
        wanted,
        lambda block: encode_lines(lines_of(path, header, shards_of(block, count))),
    )
    again = set(wanted)
    with progress(count, "seal", "shards") as shown:
        for block in blocks:
            data = None if block in again else kept.lines(block)
            if block in again:
                data = next(read)
                kept.add(block, data)
            assert data is not None
            yield from json.loads(data)
            shown.update(len(shards_of(block, count)))


class _Kept:
    """The blocks of a store that an earlier seal has read, in the user's cache.

    Args:
        path: The store, whose shards are looked at now, before any of them is read.
        header: What its `store.json` says.
    """

    def __init__(self, path: StorePath, header: StoreHeader) -> None:
        self._count, self._stamps = header.plan.shard_count, (path / SHARDS_FOLDER).stamps()
        place = [str(path.resolve()), header.spec.digest, header.plan.digest]
        self._folder = ShardCache.chosen().folder / "sealing" / _sha256(json.dumps(place))[:32]

    def lines(self, block: int) -> bytes | None:
        """Return the lines of a block as they were encoded; None: they have to be read."""
        stamp = self._stamp(block)
        try:
            found, digest, lines = self._file(block).read_bytes().split(b"\n", 2)
        except (OSError, ValueError):
            return None
        is_whole = hashlib.sha256(lines).hexdigest().encode() == digest
        return lines if stamp is not None and is_whole and found == stamp.encode() else None

    def add(self, block: int, lines: bytes) -> None:
        """Keep the lines of a block, if every shard of it has a stamp."""
        stamp = self._stamp(block)
        if stamp is None:
            return
        data = f"{stamp}\n{hashlib.sha256(lines).hexdigest()}\n".encode() + lines
        file = self._file(block)
        unnamed = temporary(file)
        with suppress(OSError):  # a seal needs no cache; it just cannot go on where it stopped
            self._folder.mkdir(parents=True, exist_ok=True)
            unnamed.write_bytes(data)
            unnamed.replace(file)

    def remove(self) -> None:
        """Forget all blocks, once they are in the index."""
        rmtree(self._folder, ignore_errors=True)

    def _stamp(self, block: int) -> str | None:
        """Put the stamps of a block's shards together; None: one has none."""
        stamps = [self._stamps.get(shard_name(i)) for i in shards_of(block, self._count)]
        return None if None in stamps else _sha256(json.dumps(stamps))

    def _file(self, block: int) -> Path:
        return self._folder / f"{block:06d}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
