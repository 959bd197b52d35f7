"""Decode on several cores, with threads that live no longer than one call.

The decoders and numpy release the interpreter's lock while they work, so threads help: two cores of
one machine decode 32 sequences from eight shards 1.2 times as fast, and 64 sequences 1.3 times; on
another machine threads gain nothing, and lose nothing.

Threads that outlive a call would not survive a fork, and a data loader's worker, which is itself
one of many, should use no more than its core. So threads are started when there is work for them
and joined before the call returns, and only in a process that multiprocessing did not start.
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
    """Decode sequences of several shards, given by their places, which ascend.

    Raises:
        CorruptStoreError: A part is damaged; names the first.
    """
    sequences = sum(len(places) for _, places in parts)
    threads = min(len(parts), _MOST_THREADS, cores(), sequences // _WORTH_A_THREAD)
    if threads < 2 or multiprocessing.parent_process() is not None:
        return [shard.records_of(places) for shard, places in parts]
    with one_thread(), ThreadPoolExecutor(threads) as pool:  # blosc's setting is global
        return list(pool.map(lambda part: part[0].records_of(part[1]), parts))


def cores() -> int:
    """Count the cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


_AT_ONCE = 16


def for_each(items: Iterable[int], call: Callable[[int], T], *, at_once: bool) -> list[T]:
    """Call a function with every item and return the results in order.

    Args:
        items: The items.
        call: The function.
        at_once: Whether several calls may run at once: for requests, which mostly wait.
    """
    if not at_once:
        return [call(i) for i in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(call, items))
