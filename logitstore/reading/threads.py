"""Decoding on several cores, for as long as one call takes.

The decoders and numpy let go of the interpreter while they work, so threads help: of 32 sequences
from eight shards, two cores of one machine decode 1.2 times as many, of 64 sequences 1.3 times; on
another machine they win nothing, and lose nothing.

Threads that outlive a call would not survive a fork, and a data loader's worker, which is itself
one of many, should take no more than its core. So threads are started when there is work for them
and joined before it is handed out, and only in a process that no multiprocessing started.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from logitstore.format.chunk_codecs import one_thread
from logitstore.reading.shard import Shard
from logitstore.reading.shard_head import T
from logitstore.records import TokenRecords

_MOST_THREADS = 4
_WORTH_A_THREAD = 12  # sequences; fewer are decoded sooner than a thread has started


def decode_parts(parts: Sequence[tuple[Shard, list[int]]]) -> list[list[TokenRecords]]:
    """Sequences of each shard by their positions in it, which ascend.

    Raises:
        CorruptStoreError: Of the first part that is damaged.
    """
    sequences = sum(len(places) for _, places in parts)
    threads = min(len(parts), _MOST_THREADS, _cores(), sequences // _WORTH_A_THREAD)
    if threads < 2 or multiprocessing.parent_process() is not None:
        return [shard.records_of(places) for shard, places in parts]
    with one_thread(), ThreadPoolExecutor(threads) as pool:  # blosc's switch is the process's
        return list(pool.map(lambda part: part[0].records_of(part[1]), parts))


def _cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


_AT_ONCE = 16


def for_each(items: Iterable[int], what: Callable[[int], T], *, at_once: bool) -> list[T]:
    """`what` of every item, in order; several requests at once, where waiting is what costs."""
    if not at_once:
        return [what(i) for i in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(what, items))
