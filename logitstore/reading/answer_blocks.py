"""Answer what the ends of blocks of shards say, as a process of its own: see `shard_ends.py`."""

import sys

import numpy as np

from logitstore.format.spec import StoreHeader
from logitstore.reading.shard_cache import ShardCache
from logitstore.reading.shard_ends import LINES, RECORDS, Read, encode_lines, lines_of, shards_of
from logitstore.reading.shard_table import ShardTable
from logitstore.reading.threads import for_each
from logitstore.storage.paths import StorePath, store_path


def reader_of(path: StorePath, what: str, size: int) -> Read:
    """Make what reads a block of `size` shards, with all checks that a reader makes."""
    header = StoreHeader.read(path)
    count = header.plan.shard_count
    if what == LINES:
        return lambda block: encode_lines(lines_of(path, header, shards_of(block, count, size)))
    table = ShardTable(path, header.spec, header.plan, ShardCache.chosen())
    table.check_header(header)

    def read(block: int) -> bytes:
        shards = shards_of(block, count, size)
        ends = for_each(shards, table.checked_skim, at_once=path.is_remote)
        parts = [end.token_counts if what == RECORDS else end.sequence_rows for end in ends]
        return np.concatenate(parts).astype("<i8").tobytes()

    return read


def main() -> None:
    """Answer the blocks that are asked for; says nothing of what fails, for its caller does."""
    path, what, size = sys.argv[1:]
    blocks = [int(number) for number in sys.stdin.read().split()]
    read = reader_of(store_path(path), what, int(size))
    for block in blocks:
        found = read(block)
        sys.stdout.buffer.write(len(found).to_bytes(8, "little") + found)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
