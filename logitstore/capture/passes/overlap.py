"""Read a batch with the teacher while the one before is encoded on a thread of its own.

An accelerator would otherwise wait for the host; on a CPU, a matrix product leaves gaps. A
shard is compressed and committed on a third thread (see `process.py`), while the next one is read.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from logitstore.capture.passes.split_on_oom import HalvingReader, Parts, Read
from logitstore.capture.passes.teacher_pass import batches
from logitstore.capture.sequences.windows import TeacherSequence

#: Called with every batch that the teacher has read: its sequences, its results, its seconds.
AfterBatch = Callable[[Sequence[TeacherSequence], Parts, float], None]


def read_overlapped(
    reader: HalvingReader,
    sequences: Sequence[TeacherSequence],
    budget: int,
    after_batch: AfterBatch | None = None,
) -> Iterator[tuple[list[int], Read]]:
    """Yield batches, as indices into `sequences`, each with its records.

    Raises:
        InputError: As `TeacherPass.read`; at the latest with the batch after the one it is about.
    """
    waiting: tuple[list[int], Future[Read]] | None = None
    with ThreadPoolExecutor(max_workers=1) as encoder:
        for batch in batches(sequences, budget):
            chosen = [sequences[i] for i in batch]
            began = time.monotonic()
            parts = reader.forward(chosen)
            if after_batch is not None:
                after_batch(chosen, parts, time.monotonic() - began)
            if waiting is not None:  # at most one batch waits, so memory is bounded
                yield waiting[0], waiting[1].result()
            waiting = batch, encoder.submit(reader.encode, parts)
        if waiting is not None:
            yield waiting[0], waiting[1].result()
