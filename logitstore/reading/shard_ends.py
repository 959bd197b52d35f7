"""Read what the ends of many shards say, on all cores.

Reading the end of a shard is a millisecond of Python, which has one lock; so each core has a
process of its own. They are started as programs, and not by `multiprocessing`: that would run a
user's script again in each, or fork a process that has threads. One that dies costs nothing but
time: what it did not answer is read here, where an error is raised as always.

    python -m logitstore.reading.answer_blocks STORE records|rows|lines SIZE     (blocks on stdin)

answers each block with eight bytes of length and then (sequences,) little-endian int64 of all its
shards, or lines of the index as JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from logitstore.format.spec import SHARDS_FOLDER, StoreHeader, shard_name
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import FOLDER_VARIABLE
from logitstore.reading.shard_head import Skimmed, index_line
from logitstore.reading.threads import cores, for_each
from logitstore.storage.paths import StorePath

#: Shards that are read at a time.
BLOCK = 256
#: Fewer shards are read sooner than a process has started.
WORTH_PROCESSES = 4 * BLOCK
RECORDS, ROWS, LINES = "records", "rows", "lines"

#: Reads a block of shards, and encodes what it says.
Read = Callable[[int], bytes]


def read_blocks(
    path: StorePath,
    what: str,
    blocks: Sequence[int],
    read: Read,
    jobs: int | None = None,
    cache: Path | None = None,
) -> Iterator[bytes]:
    """Yield what each block of shards says, in order.

    Args:
        path: The store.
        what: `RECORDS`, `ROWS` or `LINES`.
        blocks: Numbers of blocks.
        read: Reads a block in this process.
        jobs: How many processes; None: as many as there are cores.
        cache: The folder where the index of a bucket is kept; None: the user's.
    """
    count = min(jobs or cores(), len(blocks)) if sys.executable else 1
    if count < 2:
        yield from map(read, blocks)
        return
    own = {} if cache is None else {FOLDER_VARIABLE: str(cache)}
    started = [_start(path, what, blocks[first::count], own) for first in range(count)]
    try:
        for place, block in enumerate(blocks):
            found = _answer(started[place % count].stdout)
            yield read(block) if found is None else found
    finally:
        for each in started:
            each.kill()
            each.wait()
            if each.stdout is not None:
                each.stdout.close()


def _start(
    path: StorePath, what: str, blocks: Sequence[int], own: dict[str, str]
) -> "subprocess.Popen[bytes]":
    package = str(Path(__file__).resolve().parents[2])
    found = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", "logitstore.reading.answer_blocks", str(path), what, str(BLOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": found, **own},
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as numbers:
        numbers.write(b"\n".join(b"%d" % block for block in blocks))
    return process


def _answer(stream: IO[bytes] | None) -> bytes | None:
    """Read the answer to a block; None: the process has died."""
    assert stream is not None
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    found = stream.read(size) if len(head) == 8 else b""
    return found if len(head) == 8 and len(found) == size else None


def shards_of(block: int, shard_count: int, size: int | None = None) -> range:
    """List the shards of a block; `size` shards are a whole one."""
    size = size or BLOCK
    return range(block * size, min((block + 1) * size, shard_count))


def blocks_of(shard_count: int) -> range:
    """List the blocks of a store."""
    return range(-(-shard_count // BLOCK))


def lines_of(path: StorePath, header: StoreHeader, shards: Sequence[int]) -> list[dict[str, Any]]:
    """Make the index's lines of shards, whose headers are all checked.

    Of a bucket only their ends are read, several at once: they would else be fetched whole.
    """
    kind = Skimmed if path.is_remote else Shard

    def line(index: int) -> dict[str, Any]:
        file = path / SHARDS_FOLDER / shard_name(index)
        return index_line(kind(file, header.spec, header.plan, index), index)

    return for_each(shards, line, at_once=path.is_remote)


def encode_lines(lines: Sequence[dict[str, Any]]) -> bytes:
    """Encode lines of the index; JSON gives every number back as it was."""
    return json.dumps(lines).encode()
