"""The teacher reads one batch while the one before is encoded on a thread of its own.

On an accelerator, the host would otherwise let it wait; on a CPU, a matrix product leaves gaps. A
shard is compressed and committed on a third thread (see `process.py`), while the next one is read.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from logitstore.capture.passes.split_on_oom import HalvingReader, Parts, Read
from logitstore.capture.passes.teacher_pass import batches
from logitstore.capture.sequences.windows import TeacherSequence

#: Hears of every batch when the teacher has read it: what it was, what came of it, in how long.
Heard = Callable[[Sequence[TeacherSequence], Parts, float], None]


def read_overlapped(
    reader: HalvingReader,
    sequences: Sequence[TeacherSequence],
    budget: int,
    heard: Heard | None = None,
) -> Iterator[tuple[list[int], Read]]:
    """Batches, as indices into `sequences`, and their records, in order.

    Raises:
        InputError: As `TeacherPass.read`; at the latest with the batch after the one it is about.
    """
    waiting: tuple[list[int], Future[Read]] | None = None
    with ThreadPoolExecutor(max_workers=1) as encoder:
        for batch in batches(sequences, budget):
            chosen = [sequences[i] for i in batch]
            began = time.monotonic()
            parts = reader.forward(chosen)
            if heard is not None:
                heard(chosen, parts, time.monotonic() - began)
            if waiting is not None:  # at most one is: memory is bounded
                yield waiting[0], waiting[1].result()
            waiting = batch, encoder.submit(reader.encode, parts)
        if waiting is not None:
            yield waiting[0], waiting[1].result()
