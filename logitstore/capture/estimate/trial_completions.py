"""Completions of a few rows, to show what a teacher writes and to measure how long it takes."""

import time

import numpy as np
import numpy.typing as npt

from logitstore.capture.estimate.forecast import Pairs
from logitstore.capture.estimate.sample import Sample, marked
from logitstore.capture.passes.generate import Completer, Wanted, batches
from logitstore.capture.passes.overlap import read_overlapped
from logitstore.capture.passes.split_on_oom import HalvingReader, Read
from logitstore.capture.sequences.prompts import PROMPT
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.task import Task

_FEWEST_ROWS, _MOST_BATCHES = 8, 2


def rows_to_write(sample: Sample, task: Task, budget: int) -> list[int]:
    """Of a sample, evenly spread: as many as two batches hold, but eight at least.

    A full batch is faster a row than one that is not, and a capture's nearly all are full.
    """
    new_tokens = task.settings.sampling.max_new_tokens if task.settings.sampling else 0
    waiting = [
        Wanted(s.line.row, s.text.token_ids.tolist(), new_tokens)
        for s in sample.sequences
        if s.line.status == PROMPT
    ]
    for count in range(len(waiting), _FEWEST_ROWS, -1):
        chosen = [waiting[i * len(waiting) // count] for i in range(count)]
        if len(list(batches(chosen, budget))) <= _MOST_BATCHES:
            return [w.row for w in chosen]
    return [w.row for w in waiting[:: max(1, len(waiting) // _FEWEST_ROWS)]]


def write_some(
    completer: Completer,
    teacher: HalvingReader,
    sample: Sample,
    rows: list[int],
    text_bytes: npt.NDArray[np.int64],
) -> tuple[Sample, float, Pairs]:
    """Some rows of a sample with their completions.

    Args:
        completer: Writes.
        teacher: Reads what is written.
        sample: Of rows without completions.
        rows: Of it, those to be completed.
        text_bytes: Text of every row of the dataset, with what is to be written for it at most.

    Returns:
        The rows as a sample, tokens read a second (all told: writing and reading), their records.
    """
    completer.warm_up(rows[:1])
    began = time.monotonic()
    completed = completer.complete(rows)
    per_row = {row: completed.sequences(row) for row in rows}
    writing_s = time.monotonic() - began
    batch = [s for sequences in per_row.values() for s in sequences if s.records]
    encoded, reading_s = _read(teacher, batch, completer.budget) if batch else ([], 0.0)
    written = Sample(rows=len(rows), text_bytes=int(text_bytes[rows].sum()), sequences=batch)
    written.statuses.update(s.line.status for each in per_row.values() for s in each)
    written.first = next((_shown(each) for each in per_row.values() if _shown(each)), sample.first)
    speed = written.tokens / max(writing_s + reading_s, 1e-9)
    return written, speed, list(zip((s.line for s in batch), encoded, strict=True))


def _read(
    teacher: HalvingReader, written: list[TeacherSequence], budget: int
) -> tuple[Read, float]:
    """As a capture reads them, and in how many seconds; one before, since the first is slow."""
    teacher.read(written[:1])
    began = time.monotonic()
    records: Read = [None] * len(written)
    for batch, encoded in read_overlapped(teacher, written, budget):
        for i, record in zip(batch, encoded, strict=True):
            records[i] = record
    return records, time.monotonic() - began


def _shown(sequences: list[TeacherSequence]) -> str:
    """A row in one piece, marked; empty for one in windows or without records."""
    is_whole = len(sequences) == 1 and sequences[0].records > 0
    return marked(sequences[0], sequences) if is_whole else ""
