"""Gather the lines of the index before a store is sealed: on all cores, and from where it stopped.

Every shard is opened and its headers are checked, which takes a millisecond: of two million shards,
forty minutes of one core. So blocks of shards are read by as many processes as there are cores, and
the lines of each block are kept in the user's cache, with size and times of each file, until the
store is sealed. A seal that was stopped goes on with them; a block of which any file has another
sign, or was written so lately that its time may not tell, is read again.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

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
from logitstore.reading.threads import for_each
from logitstore.storage.commit import temporary
from logitstore.storage.files import TICK_NS, file_sign
from logitstore.storage.paths import StorePath


def gather_lines(path: StorePath, header: StoreHeader) -> Lines:
    """Make the lines of the index of a store whose shards are all there.

    Raises:
        CorruptStoreError: A shard is not one of this store.
        StorageError: The object store fails.
    """
    shards = range(header.plan.shard_count)
    if not isinstance(path, Path) or len(shards) < WORTH_PROCESSES:
        found = for_each(shards, lambda i: lines_of(path, header, [i])[0], at_once=path.is_remote)
        return Lines.of(found)
    kept = _Kept(path, header)
    lines = Lines.of(_all_lines(path, header, kept))
    kept.remove()
    return lines


def _all_lines(path: StorePath, header: StoreHeader, kept: "_Kept") -> Iterator[Line]:
    """Yield all lines in order; each block is kept as soon as it is read."""
    count = header.plan.shard_count
    signs = {block: kept.sign(block) for block in blocks_of(count)}
    wanted = [block for block, sign in signs.items() if kept.lines(block, sign) is None]
    read = read_blocks(
        path,
        LINES,
        wanted,
        lambda block: encode_lines(lines_of(path, header, shards_of(block, count))),
    )
    again = set(wanted)
    with progress(count, "seal", "shards") as shown:
        for block, sign in signs.items():
            data = None if block in again else kept.lines(block, sign)
            if block in again:
                data = next(read)
                kept.add(block, sign, data)
            assert data is not None
            yield from json.loads(data)
            shown.update(len(shards_of(block, count)))


class _Sign(NamedTuple):
    """What the files of a block look like.

    Attributes:
        digest: Of the size and times of all.
        newest_ns: When anything of them changed last.
    """

    digest: str
    newest_ns: int


class _Kept:
    """The blocks of a store that an earlier seal has read, in the user's cache."""

    def __init__(self, path: Path, header: StoreHeader) -> None:
        self._shards, self._count = path / SHARDS_FOLDER, header.plan.shard_count
        place = [str(path.resolve()), header.spec.digest, header.plan.digest]
        self._folder = ShardCache.chosen().folder / "sealing" / _sha256(json.dumps(place))[:32]

    def sign(self, block: int) -> _Sign:
        """Look at the files of a block, before they are read."""
        files = (self._shards / shard_name(i) for i in shards_of(block, self._count))
        signs = [file_sign(file) for file in files]
        newest = max(max(sign.mtime_ns, sign.ctime_ns) for sign in signs)
        return _Sign(_sha256(json.dumps(signs)), newest)

    def lines(self, block: int, sign: _Sign) -> bytes | None:
        """Return the lines of a block as they were encoded; None: they have to be read."""
        try:
            found, digest, lines = self._file(block).read_bytes().split(b"\n", 2)
        except (OSError, ValueError):
            return None
        is_whole = hashlib.sha256(lines).hexdigest().encode() == digest
        return lines if is_whole and found == sign.digest.encode() else None

    def add(self, block: int, sign: _Sign, lines: bytes) -> None:
        """Keep the lines of a block whose files were looked at before they were read.

        Not if one was written so lately that the clock may not tell it from the next write.
        """
        if sign.newest_ns > time.time_ns() - TICK_NS:
            return
        data = f"{sign.digest}\n{hashlib.sha256(lines).hexdigest()}\n".encode() + lines
        file = self._file(block)
        unnamed = temporary(file)
        with suppress(OSError):  # a seal needs no cache; it just cannot go on where it stopped
            self._folder.mkdir(parents=True, exist_ok=True)
            unnamed.write_bytes(data)
            unnamed.replace(file)

    def remove(self) -> None:
        """Forget all blocks, once they are in the index."""
        rmtree(self._folder, ignore_errors=True)

    def _file(self, block: int) -> Path:
        return self._folder / f"{block:06d}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
