"""Read some batches before a capture, to measure how fast, how large and how peaked it will be.

For `logitstore estimate` and `logitstore capture --dry-run`; and before a capture that is long
enough for the trial to cost next to nothing.
"""

import math
import time
from collections.abc import Sequence

from logitstore.capture.estimate.forecast import Forecast, Pairs, extrapolate, stored_size
from logitstore.capture.estimate.profile import MOST_ENTRIES, profile_of
from logitstore.capture.estimate.sample import Sample
from logitstore.capture.estimate.trial_completions import rows_to_write, write_some
from logitstore.capture.passes.choose import completer_of
from logitstore.capture.passes.engine import Engine
from logitstore.capture.passes.overlap import read_overlapped
from logitstore.capture.passes.split_on_oom import HalvingReader
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.task import Task
from logitstore.format.encoded import EncodedRecords
from logitstore.records import SequenceText

#: The part of all that the teacher reads or writes in a capture that a trial may add to it.
_TRIAL_SHARE = 0.01
_WARM_UP_TOKENS = 256
_TRIAL_S = 10.0
_PROFILE_TOKENS = 4096  # a batch or two, read once more with many entries


def forecast_capture(
    task: Task,
    teacher: Engine,
    sample: Sample,
    missing: Sequence[int],
    budget: int,
    *,
    most_tokens: float = math.inf,
    own_missing: Sequence[int] | None = None,
) -> Forecast:
    """Measure on trial batches what the missing shards will take.

    Args:
        task: The capture.
        teacher: The loaded teacher.
        sample: Rows of the dataset.
        missing: Shards that are still to be captured.
        budget: Padded tokens of a batch.
        most_tokens: Tokens to read at most for the measurement of speed, beyond a first batch.
        own_missing: Of the missing shards, those without records at the teacher's own tokens.

    Returns:
        The forecast; without costs if the sample has nothing for the teacher. Where the teacher
        writes completions, its sample is the rows with these.
    """
    completer, reader = completer_of(teacher, task, budget), HalvingReader(teacher, _no_journal)
    if completer is not None:
        rows = rows_to_write(sample, task, budget)
        sample, speed, pairs = write_some(completer, reader, sample, rows, task.sizes)
    else:
        speed, pairs = _read_some(reader, sample.sequences, budget, most_tokens)
    known = Forecast.before_teacher(task, sample, missing, own_missing)
    if not pairs:
        return known
    few = spread(sample.sequences, _PROFILE_TOKENS)
    return extrapolate(
        known,
        tokens_per_s=speed,
        size=stored_size(task.spec, task.plan, pairs),
        profile=profile_of([teacher.most_probable([s], MOST_ENTRIES) for s in few]),
        devices=teacher.devices,
    )


def forecast_if_cheap(task: Task, teacher: Engine, sample: Sample, budget: int) -> Forecast | None:
    """Forecast a capture that is about to begin; None where that would cost over 1 % of it."""
    shards = range(task.plan.shard_count)
    if task.settings.generate:
        cost = len(rows_to_write(sample, task, budget))
        most = _TRIAL_SHARE * len(task.rows)
    else:
        cost = budget + 2 * _WARM_UP_TOKENS + _PROFILE_TOKENS
        tokens = sample.tokens * task.text_of(shards) / max(sample.text_bytes, 1)
        most = _TRIAL_SHARE * tokens
    if cost > most:
        return None
    return forecast_capture(task, teacher, sample, shards, budget, most_tokens=most - cost)


def _no_journal(event: str, **facts: object) -> None:
    """Ignore an event: a trial writes no store, so there is no journal."""


def spread(sequences: Sequence[TeacherSequence], most_tokens: float) -> list[TeacherSequence]:
    """Choose about `most_tokens` tokens of sequences with records, from all over the sample."""
    with_records = [s for s in sequences if s.records]
    step = max(1.0, sum(s.length for s in with_records) / most_tokens)
    return [with_records[int(i * step)] for i in range(math.ceil(len(with_records) / step))]


def _read_some(
    teacher: HalvingReader, sequences: Sequence[TeacherSequence], budget: int, most_tokens: float
) -> tuple[float, Pairs]:
    """Read trial batches as a capture reads them.

    At least a batch, and not much more than ten seconds or `most_tokens`. Two short ones before
    them are not counted, for with the first batch kernels are chosen and the head is checked.

    Returns:
        Tokens a second, and the records.
    """
    speed = 0.0
    for _ in range(2):
        few = spread(sequences, _WARM_UP_TOKENS)
        if not few:
            return 0.0, []
        speed, _ = _timed(teacher, few, budget)
    tokens = max(budget, min(speed * _TRIAL_S, most_tokens))
    return _timed(teacher, spread(sequences, tokens), budget)


def _timed(
    teacher: HalvingReader, chosen: Sequence[TeacherSequence], budget: int
) -> tuple[float, Pairs]:
    pairs: list[tuple[SequenceText, EncodedRecords | None]] = []
    began = time.monotonic()
    for batch, encoded in read_overlapped(teacher, chosen, budget):
        pairs += zip((chosen[i].line for i in batch), (each.own for each in encoded), strict=True)
    seconds = time.monotonic() - began
    return sum(s.length for s in chosen) / max(seconds, 1e-9), pairs
