"""Write completions of a few rows, to show what the teacher writes and how long it takes."""

import time

from logitstore.capture.estimate.forecast import Pairs
from logitstore.capture.estimate.sample import Sample, marked_text
from logitstore.capture.passes.completer import Completer, Wanted, batches
from logitstore.capture.passes.engine import SequenceRecords
from logitstore.capture.passes.overlap import read_overlapped
from logitstore.capture.passes.split_on_oom import HalvingReader, Read
from logitstore.capture.sequences.prompts import PROMPT
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.task import Task
from logitstore.capture.text_sizes import TextSizes

_FEWEST_ROWS, _MOST_BATCHES = 8, 2


def rows_to_write(sample: Sample, task: Task, budget: int) -> list[int]:
    """Choose rows of a sample, evenly spread: as many as two batches hold, but at least eight.

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
    sizes: TextSizes,
) -> tuple[Sample, float, Pairs]:
    """Complete some rows of a sample, and read the completions as a capture does.

    Args:
        completer: Writes the completions.
        teacher: Reads rows with completions.
        sample: Rows without completions.
        rows: The rows of the sample to complete.
        sizes: How much text these rows have, with the longest completion.

    Returns:
        The completed rows as a sample, tokens a second of writing and reading together, and the
        records.
    """
    completer.warm_up(rows[:1])
    began = time.monotonic()
    completed = completer.complete(rows)
    per_row = {row: completed.sequences(row) for row in rows}
    writing_s = time.monotonic() - began
    batch = [s for sequences in per_row.values() for s in sequences if s.records]
    encoded, reading_s = _read(teacher, batch, completer.budget) if batch else ([], 0.0)
    written = Sample(rows=len(rows), text_bytes=int(sizes.of(rows).sum()), sequences=batch)
    written.statuses.update(s.line.status for parts in per_row.values() for s in parts)
    shown = (_shown(parts) for parts in per_row.values())
    written.first = next((text for text in shown if text), sample.first)
    speed = written.tokens / max(writing_s + reading_s, 1e-9)
    return written, speed, [(s.line, e.own) for s, e in zip(batch, encoded, strict=True)]


def _read(
    teacher: HalvingReader, written: list[TeacherSequence], budget: int
) -> tuple[Read, float]:
    """Read sequences as a capture does, and time it; one before is not timed, for it is slow."""
    teacher.read(written[:1])
    began = time.monotonic()
    records: Read = [SequenceRecords(None)] * len(written)
    for batch, encoded in read_overlapped(teacher, written, budget):
        for i, record in zip(batch, encoded, strict=True):
            records[i] = record
    return records, time.monotonic() - began


def _shown(sequences: list[TeacherSequence]) -> str:
    """Write a row with its supervised tokens marked; empty for windows or without records."""
    is_whole = len(sequences) == 1 and sequences[0].records > 0
    return marked_text(sequences[0], sequences) if is_whole else ""
