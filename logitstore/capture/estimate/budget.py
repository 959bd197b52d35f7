"""Measure `--tokens-per-batch auto`: how many tokens a forward pass takes, before shard 0.

On an accelerator it is the largest number of padded tokens that fits. It is tried with the longest
sequences of the dataset, all of their tokens supervised: first doubling, then halving the interval
that is left. The result is recorded in the store, and every later run takes it from there.

A CPU raises no error when memory runs out: the system kills the process. So there it is the
smallest batch that is about as fast as any, and never more than the default.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from logitstore.capture.passes.split_on_oom import too_long
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.memory import free_memory, is_out_of_memory
from logitstore.console.counts import counted
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH

if TYPE_CHECKING:
    from logitstore.capture.estimate.sample import Sample
    from logitstore.capture.passes.engine import Engine
    from logitstore.capture.task import Task

log = logging.getLogger(__name__)

#: Beyond this nothing gets faster, and a batch is a noticeable part of a shard.
_MOST_TOKENS = 131_072
_HALVINGS = 3  # after the doubling: to within an eighth of what fits
_MIN_SPEEDUP = 1.05  # on a CPU: what a doubling must bring
_LONG_S = 10.0  # on a CPU: a batch that takes this long is large enough
_NOTHING_TO_TRY = "no row looked at has a supervised token"


def find_budget(task: "Task", teacher: "Engine", sample: "Sample") -> int:
    """Measure the padded tokens of a batch for a new store, and log the reason for the number.

    Raises:
        InputError: Not even one of the longest sequences fits.
    """
    tokens, why = DEFAULT_TOKENS_PER_BATCH, _NOTHING_TO_TRY
    if teacher.raises_out_of_memory:
        if (longest := longest_sequence(task, sample)) is not None:
            # A token has a byte or more, but for the few that a tokenizer adds.
            most = min(_MOST_TOKENS, max(task.sizes.of_largest_shard, longest.length))
            tokens, why = _most_that_fits(teacher, longest, most)
    elif (median := _median_sequence(sample)) is not None:
        tokens, why = _fast_enough(teacher, median)
    free_memory()
    log.info("tokens per batch: %s (auto: %s)", f"{tokens:,}", why)
    return tokens


def longest_sequence(task: "Task", sample: "Sample") -> TeacherSequence | None:
    """Find the longest sequence, and mark all of its tokens as supervised: the worst case."""
    rows = task.sizes.longest.tolist()
    sequences = [s for row in rows for s in task.reader.sequences(row)] + sample.sequences
    longest = max((s for s in sequences if s.records), key=lambda s: s.length, default=None)
    if longest is None:
        return None
    all_but_first = np.arange(longest.length) > 0
    return replace(longest, text=replace(longest.text, has_record=all_but_first))


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Find the largest count that fits, to within an eighth: 1, 2, 4, … then between the last two.

    Args:
        fits: Tries a count; returns whether it fitted.
        most: Counts above it are not tried.

    Returns:
        0 if not even one fits.
    """
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, bad * 2
    bad = min(bad, most + 1)
    for _ in range(_HALVINGS if good else 0):
        middle = (good + bad) // 2
        if middle == good:
            break
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def smallest_that_is_fast(speed_of: Callable[[int], float | None], most: int) -> int:
    """Find the first count whose double is less than 5 % faster; at least 1.

    Args:
        speed_of: Measures tokens a second with a count; None for a count that is too large.
        most: Counts above it are not tried.
    """
    count, speed = 1, speed_of(1)
    while speed is not None and count * 2 <= most:
        doubled = speed_of(count * 2)
        if doubled is None or doubled < speed * _MIN_SPEEDUP:
            break
        count, speed = count * 2, doubled
    return count


def _most_that_fits(teacher: "Engine", longest: TeacherSequence, most: int) -> tuple[int, str]:
    """Find the most padded tokens that fit, and say why it is this number."""
    failed: list[str] = []

    def fits(count: int) -> bool:
        try:
            teacher.forward([longest] * count)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            failed.append(f"{count * longest.length:,}")
        else:
            return True
        free_memory()
        return False

    count = largest_that_fits(fits, max(most // longest.length, 1))
    if not count:
        raise too_long(longest, teacher)
    lines = f"sequences of {counted(longest.length, 'token')}"
    why = f"as many {lines} as a batch may need; all of it fits"
    if failed:
        why = f"the most that fits with {lines}; {failed[-1]} do not"
    return count * longest.length, why


def _fast_enough(teacher: "Engine", median: TeacherSequence) -> tuple[int, str]:
    """Find the smallest batch that is about as fast as any, and say why it is this number."""

    def speed_of(count: int) -> float | None:
        best = float("inf")
        for _ in range(2):  # the first run is slow (allocations, choice of kernels): take the best
            began = time.perf_counter()
            try:
                teacher.forward([median] * count)
            except (RuntimeError, MemoryError) as e:
                if not is_out_of_memory(e):
                    raise
                return None
            best = min(best, time.perf_counter() - began)
            if best > _LONG_S:
                return None
        return count * median.length / max(best, 1e-9)

    count = smallest_that_is_fast(speed_of, DEFAULT_TOKENS_PER_BATCH // median.length)
    return count * median.length, (
        "a CPU raises no error when memory runs out, so this is the smallest batch of sequences of "
        f"median length that is about as fast as larger ones, never above "
        f"{DEFAULT_TOKENS_PER_BATCH:,}"
    )


def _median_sequence(sample: "Sample") -> TeacherSequence | None:
    ordered = sorted((s for s in sample.sequences if s.records), key=lambda s: s.length)
    return ordered[len(ordered) // 2] if ordered else None
