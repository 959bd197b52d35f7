"""`--tokens-per-batch auto`: how many tokens a forward pass takes, found out before shard 0.

On an accelerator: the most padded tokens that fit, tried with the longest sequences that the data
has, all of their tokens supervised, first doubling, then halving what is left. What is found is
recorded in the store, and every later run takes it from there.

A CPU gives no sign before its memory ends: the system ends the process. So there it is the smallest
batch that is about as fast as any, and never more than the default.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from logitstore.capture.passes.split_on_oom import too_long
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.memory import free_memory, is_out_of_memory
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH

if TYPE_CHECKING:
    from logitstore.capture.estimate.sample import Sample
    from logitstore.capture.passes.teacher_pass import TeacherPass
    from logitstore.capture.task import Task

log = logging.getLogger(__name__)

#: Beyond this nothing gets faster, and a batch is a noticeable part of a shard.
_MOST_TOKENS = 131_072
_LONGEST_ROWS = 8  # of the dataset, by bytes; one of them has the most tokens, or nearly
_HALVINGS = 3  # after the doubling: to within an eighth of what fits
_FASTER = 1.05  # on a CPU: what a doubling must bring
_LONG_S = 10.0  # on a CPU: a batch that takes so long is large enough


class Found(NamedTuple):
    """A budget, and why it is this one."""

    tokens: int
    why: str


def find_budget(task: "Task", teacher: "TeacherPass", sample: "Sample") -> Found:
    """The budget for a new store.

    Raises:
        InputError: Not even one of the longest sequences fits.
    """
    largest_shard = max(task.text_of([i]) for i in range(task.plan.shard_count))
    if gives_a_sign(teacher):
        longest = longest_sequence(task, sample)
        if longest is None:
            return Found(DEFAULT_TOKENS_PER_BATCH, "no row looked at has a supervised token")
        # A token has a byte or more, but for the few that a tokenizer adds.
        most = min(_MOST_TOKENS, max(largest_shard, longest.length))
        found = _most_that_fits(teacher, longest, most)
    else:
        usual = _middle(sample)
        if usual is None:
            return Found(DEFAULT_TOKENS_PER_BATCH, "no row looked at has a supervised token")
        found = _fast_enough(teacher, usual)
    free_memory()
    log.info("tokens per batch: %s (auto: %s)", f"{found.tokens:,}", found.why)
    return found


def gives_a_sign(teacher: "TeacherPass") -> bool:
    """Whether the device raises when its memory ends."""
    return teacher.device.type != "cpu"


def longest_sequence(task: "Task", sample: "Sample") -> TeacherSequence | None:
    """The longest that was looked at, as if all of its tokens were supervised."""
    rows = np.argsort(-task.text_bytes, kind="stable")[:_LONGEST_ROWS]
    read = [s for row in rows for s in task.reader.sequences(int(row))] + sample.sequences
    with_records = [s for s in read if s.records]
    if not with_records:
        return None
    found = max(with_records, key=lambda s: s.length)
    everywhere = np.arange(found.length) > 0
    return replace(found, text=replace(found.text, has_record=everywhere))


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest count that fits, to within an eighth: 1, 2, 4, … then between the last two.

    Args:
        fits: Tries a count.
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
    """The first count that its double does not beat by much; at least 1.

    Args:
        speed_of: Tokens a second with that count, or None where it is not to be exceeded.
        most: Counts above it are not tried.
    """
    count, speed = 1, speed_of(1)
    while speed is not None and count * 2 <= most:
        doubled = speed_of(count * 2)
        if doubled is None or doubled < speed * _FASTER:
            break
        count, speed = count * 2, doubled
    return count


def _most_that_fits(teacher: "TeacherPass", longest: TeacherSequence, most: int) -> Found:
    failed: list[str] = []

    def fits(count: int) -> bool:
        try:
            teacher.forward([longest] * count)
        except Exception as e:
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
    lines = f"sequences of {longest.length:,} tokens"
    if failed:
        return Found(
            count * longest.length, f"the most that fits with {lines}; {failed[-1]} do not"
        )
    return Found(count * longest.length, f"as many {lines} as a batch may need; all of it fits")


def _fast_enough(teacher: "TeacherPass", usual: TeacherSequence) -> Found:
    def speed_of(count: int) -> float | None:
        best = float("inf")
        for _ in range(2):  # the first time is slow, and tells little
            began = time.perf_counter()
            try:
                teacher.forward([usual] * count)
            except Exception as e:
                if not is_out_of_memory(e):
                    raise
                return None
            best = min(best, time.perf_counter() - began)
            if best > _LONG_S:
                return None
        return count * usual.length / max(best, 1e-9)

    count = smallest_that_is_fast(speed_of, DEFAULT_TOKENS_PER_BATCH // usual.length)
    return Found(
        count * usual.length,
        "a CPU does not tell before its memory ends, so this is the smallest batch of usual "
        f"sequences that is about as fast as larger ones, and never above "
        f"{DEFAULT_TOKENS_PER_BATCH:,}",
    )


def _middle(sample: "Sample") -> TeacherSequence | None:
    """The sequence of middle length."""
    read: Sequence[TeacherSequence] = sorted(
        (s for s in sample.sequences if s.records), key=lambda s: s.length
    )
    return read[len(read) // 2] if read else None
