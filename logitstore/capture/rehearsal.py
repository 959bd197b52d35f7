"""Completions of a few rows, to show what a teacher writes and to measure how long it takes."""

import time

import numpy as np
import numpy.typing as npt

from logitstore.capture.generate import Completer
from logitstore.capture.halving import HalvingReader
from logitstore.capture.preview import Pairs, Sample, marked
from logitstore.capture.prompts import PROMPT
from logitstore.capture.windows import TeacherSequence

_ROWS = 8


def write_some(
    completer: Completer,
    teacher: HalvingReader,
    sample: Sample,
    text_bytes: npt.NDArray[np.int64],
) -> tuple[Sample, float, Pairs]:
    """A few rows of a sample with their completions, evenly spread.

    Args:
        completer: Writes.
        teacher: Reads what is written.
        sample: Of rows without completions.
        text_bytes: Text of every row of the dataset, with what is to be written for it at most.

    Returns:
        The rows as a sample, tokens read a second (all told: writing and reading), their records.
    """
    waiting = [s.line.row for s in sample.sequences if s.line.status == PROMPT]
    rows = waiting[:: max(1, -(-len(waiting) // _ROWS))]
    began = time.monotonic()
    completed = completer.complete(rows)
    per_row = {row: completed.sequences(row) for row in rows}
    batch = [s for sequences in per_row.values() for s in sequences if s.records]
    encoded = teacher.read(batch) if batch else []
    seconds = time.monotonic() - began
    written = Sample(rows=len(rows), text_bytes=int(text_bytes[rows].sum()), sequences=batch)
    written.statuses.update(s.line.status for each in per_row.values() for s in each)
    written.first = next((_shown(each) for each in per_row.values() if _shown(each)), sample.first)
    speed = written.tokens / max(seconds, 1e-9)
    return written, speed, list(zip((s.line for s in batch), encoded, strict=True))


def _shown(sequences: list[TeacherSequence]) -> str:
    """A row in one piece, marked; empty for one in windows or without records."""
    is_whole = len(sequences) == 1 and sequences[0].records > 0
    return marked(sequences[0], sequences) if is_whole else ""
