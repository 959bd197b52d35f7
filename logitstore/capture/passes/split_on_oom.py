"""Read a batch that does not fit the device's memory in halves: no row is lost or stored twice.

Batches before and after it stay as they are. The records of the halves agree with those of the
whole batch to within rounding, not to the bit.
"""

import logging
from collections.abc import Callable, Sequence

from logitstore.capture.passes.engine import Engine, Forwarded, SequenceRecords
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.memory import free_memory, is_out_of_memory
from logitstore.console.counts import counted
from logitstore.errors import InputError, in_a_line

log = logging.getLogger(__name__)

Read = list[SequenceRecords]
#: The parts of a batch that fitted, each with what the teacher said of it.
Parts = list[tuple[Sequence[TeacherSequence], Forwarded]]


class HalvingReader:
    """Reads batches, in halves where the device has no room for a whole one.

    Args:
        teacher: Reads batches that fit.
        note: Writes an event to the journal.
    """

    def __init__(self, teacher: Engine, note: Callable[..., None]) -> None:
        self._teacher, self._note = teacher, note
        self._has_warned = False

    def read(self, batch: Sequence[TeacherSequence]) -> Read:
        """Read a batch and encode the records of each sequence, as `TeacherPass.read` does.

        Raises:
            InputError: One sequence alone does not fit; or what `TeacherPass.read` raises.
        """
        return self.encode(self.forward(batch))

    def encode(self, parts: Parts) -> Read:
        """Encode the records of a forwarded batch; may run on another thread than `forward`.

        Raises:
            InputError: As `TeacherPass.read`.
        """
        return [r for batch, said in parts for r in self._teacher.encode(batch, *said)]

    def forward(self, batch: Sequence[TeacherSequence]) -> Parts:
        """Run a batch through the teacher, whole or in halves.

        Raises:
            InputError: One sequence alone does not fit.
        """
        try:
            return [(batch, self._teacher.forward(batch))]
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            why = in_a_line(e)
        free_memory()  # here, where the error no longer holds the tensors
        if len(batch) == 1:
            raise too_long(batch[0], self._teacher)
        self._note_and_warn(batch, why)
        middle = len(batch) // 2
        return self.forward(batch[:middle]) + self.forward(batch[middle:])

    def _note_and_warn(self, batch: Sequence[TeacherSequence], why: str) -> None:
        tokens = len(batch) * max(s.length for s in batch)
        rows = [s.line.row for s in batch]
        self._note("out of memory", sequences=len(batch), tokens=tokens, rows=rows[:8], why=why)
        if self._has_warned:
            return
        self._has_warned = True
        log.warning(
            "a batch of %s tokens does not fit the memory of %s: it is read in halves, and so is "
            "every other that does not fit (the journal has them). Nothing is lost but time. If "
            "it happens often, run the same command again with a lower --tokens-per-batch.",
            f"{tokens:,}",
            self._teacher.place,
        )


def too_long(sequence: TeacherSequence, teacher: "Engine") -> InputError:
    """Make the error for a single sequence that does not fit the device's memory."""
    return InputError(
        f"row {sequence.line.row:,}: one sequence of {counted(sequence.length, 'token')} alone "
        f"does not fit the memory of {teacher.place}. Every shard before it is good. Give the "
        "teacher more room, with --device-map auto or on another device, and run the same command "
        "again; or begin a store with a lower --max-length, --dtype bfloat16 or --quantization "
        "bitsandbytes-8bit.",
        kind="out-of-memory",
    )
