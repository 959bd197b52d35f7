"""Check several shards at a time.

Digests are computed in threads, for hashing leaves Python's lock alone. Decoding does not, so deep
checks run in processes. They are new ones rather than forks: a fork of a process with threads may
hang, and pyarrow has some.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from logitstore.checking.report import Damage
from logitstore.checking.shard_check import ShardCheck
from logitstore.errors import InputError

#: Shards that are handed out ahead, for each job: results are given in the order of the shards.
_AHEAD = 4
Task = tuple[int, Mapping[str, Any] | None]

#: What the processes of a pool check with.
_check: ShardCheck | None = None


def checked_in_parallel(
    check: ShardCheck, tasks: Iterable[Task], jobs: int
) -> Iterator[tuple[int, list[Damage]]]:
    """Check shards, and yield each number with its damage, in the order of the tasks.

    Args:
        check: What checks a shard.
        tasks: Numbers of shards, each with its line of the index.
        jobs: How many are checked at a time.

    Raises:
        InputError: A process was killed.
    """
    if jobs == 1:
        yield from ((index, check(index, line)) for index, line in tasks)
        return
    with _pool(check, jobs) as pool:
        run = _checked if check.deep else check
        waiting = deque[tuple[int, Future[list[Damage]]]]()
        try:
            for index, line in tasks:
                waiting.append((index, pool.submit(run, index, line)))
                if len(waiting) > _AHEAD * jobs:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        except BrokenProcessPool:
            raise InputError(
                f"{check.path}: a process that checked shards was killed, perhaps for memory. "
                f"Check fewer at a time: --jobs {max(1, jobs // 2)}.",
                kind="out-of-memory",
            ) from None
        finally:  # of a check that is stopped, what has not begun is not begun
            pool.shutdown(wait=False, cancel_futures=True)


def _next(waiting: "deque[tuple[int, Future[list[Damage]]]]") -> tuple[int, list[Damage]]:
    index, future = waiting.popleft()
    return index, future.result()


def _pool(check: ShardCheck, jobs: int) -> Executor:
    if not check.deep:
        return ThreadPoolExecutor(jobs)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(check,))


def _begin(check: ShardCheck) -> None:
    global _check
    _check = check


def _checked(index: int, line: Mapping[str, Any] | None) -> list[Damage]:
    assert _check is not None
    return _check(index, line)
