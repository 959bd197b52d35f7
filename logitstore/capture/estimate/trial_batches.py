"""Some batches through the teacher before a capture: how fast, how large, how peaked.

For `logitstore estimate` and `logitstore capture --dry-run`; and at the head of a capture that is
long enough for it to cost next to nothing.
"""

import math
import time
from collections.abc import Sequence

from logitstore.capture.estimate.forecast import Foretold, Pairs, outlook, stored_size
from logitstore.capture.estimate.profile import MOST_ENTRIES, profile_of
from logitstore.capture.estimate.sample import Sample
from logitstore.capture.estimate.trial_completions import rows_to_write, write_some
from logitstore.capture.passes.generate import Completer
from logitstore.capture.passes.overlap import read_overlapped
from logitstore.capture.passes.split_on_oom import HalvingReader
from logitstore.capture.passes.teacher_pass import TeacherPass
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.task import Task
from logitstore.format.encoded import EncodedRecords
from logitstore.records import SequenceText

#: What a trial may cost at the head of a capture, of all that the teacher reads or writes in it.
_HEAD_SHARE = 0.01
_FEW_TOKENS = 256
_TRIED_S = 10.0
_PROFILED_TOKENS = 4096  # a batch or two, read once more with many entries


def foretell(
    task: Task,
    teacher: TeacherPass,
    sample: Sample,
    missing: Sequence[int],
    budget: int,
    *,
    most_tokens: float = math.inf,
) -> tuple[Sample, Foretold | None]:
    """What the missing shards will take; None if the sample has nothing for the teacher.

    Args:
        task: The capture.
        teacher: Is asked.
        sample: Of the dataset.
        missing: Shards that are still to be written.
        budget: Padded tokens of a batch.
        most_tokens: To read for the measurement of speed, but for a first batch.

    Returns:
        The sample, which is another where the teacher writes its completions; and the outlook.
    """
    completer, reader = Completer.of(teacher, task, budget), HalvingReader(teacher, _nowhere)
    if completer is not None:
        rows = rows_to_write(sample, task, budget)
        sample, speed, pairs = write_some(completer, reader, sample, rows, task.text_bytes)
    else:
        speed, pairs = try_out(reader, sample.sequences, budget, most_tokens)
    if not pairs:
        return sample, None
    size = stored_size(task.spec, task.plan, pairs)
    found = outlook(sample, task.text_of(missing), len(missing), speed, size, teacher.devices)
    few = spread(sample.sequences, _PROFILED_TOKENS)
    profile = profile_of([teacher.likeliest([s], MOST_ENTRIES) for s in few])
    return sample, Foretold(found, size, profile)


def foretell_at_head(
    task: Task, teacher: TeacherPass, sample: Sample, budget: int
) -> Foretold | None:
    """Of a capture that is to begin; None where that would cost more than a hundredth of it."""
    shards = range(task.plan.shard_count)
    if task.settings.generate:
        tried, most = len(rows_to_write(sample, task, budget)), _HEAD_SHARE * len(task.rows)
    else:
        tried = budget + 2 * _FEW_TOKENS + _PROFILED_TOKENS
        whole = sample.tokens * task.text_of(shards) / max(sample.text_bytes, 1)
        most = _HEAD_SHARE * whole
    if tried > most:
        return None
    return foretell(task, teacher, sample, shards, budget, most_tokens=most - tried)[1]


def _nowhere(event: str, **facts: object) -> None:
    """The journal of what writes nothing."""


def spread(sequences: Sequence[TeacherSequence], most_tokens: float) -> list[TeacherSequence]:
    """So many tokens of sequences with records, from all over the sample."""
    found = [s for s in sequences if s.records]
    step = max(1.0, sum(s.length for s in found) / most_tokens)
    return [found[int(i * step)] for i in range(math.ceil(len(found) / step))]


def try_out(
    teacher: HalvingReader, sequences: Sequence[TeacherSequence], budget: int, most_tokens: float
) -> tuple[float, Pairs]:
    """(tokens a second, records) of some batches, read as a capture reads them.

    A batch at least, and not much more than ten seconds or `most_tokens`; a short one before them
    is not timed, for with the first batch kernels are chosen and the head is checked.
    """
    speed = 0.0
    for _ in range(2):
        few = spread(sequences, _FEW_TOKENS)
        if not few:
            return 0.0, []
        speed, _ = _timed(teacher, few, budget)
    return _timed(
        teacher, spread(sequences, max(budget, min(speed * _TRIED_S, most_tokens))), budget
    )


def _timed(
    teacher: HalvingReader, chosen: Sequence[TeacherSequence], budget: int
) -> tuple[float, Pairs]:
    found: list[tuple[SequenceText, EncodedRecords | None]] = []
    began = time.monotonic()
    for batch, encoded in read_overlapped(teacher, chosen, budget):
        found += zip((chosen[i].line for i in batch), encoded, strict=True)
    seconds = time.monotonic() - began
    return sum(s.length for s in chosen) / max(seconds, 1e-9), found
