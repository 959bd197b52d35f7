"""Capture one shard: rows become sequences, sequences become records, records become a file."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from logitstore.capture.estimate.forecast import Forecast, Pairs, extrapolate, stored_size
from logitstore.capture.estimate.profile import profile_of
from logitstore.capture.odd_turns import OddTurns
from logitstore.capture.passes.choose import completer_of
from logitstore.capture.passes.completer import CompletedRows
from logitstore.capture.passes.engine import NOT_FINITE, Engine, SequenceRecords
from logitstore.capture.passes.overlap import read_overlapped
from logitstore.capture.passes.split_on_oom import HalvingReader, Parts
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.task import Task
from logitstore.capture.writer import CaptureWriter
from logitstore.console.memory import peak_memory
from logitstore.console.progress import Shows, byte_count
from logitstore.format.encoded import EncodedRecords
from logitstore.records import SequenceText

ShardSequences = list[tuple[SequenceText, EncodedRecords | None]]


class ShardRecords(NamedTuple):
    """Holds the sequences of a shard in order, each with its records.

    Attributes:
        own: With the records at the teacher's own tokens.
        boundaries: With those at a student's boundaries; without records if none are asked for.
    """

    own: ShardSequences
    boundaries: ShardSequences


class ShardWorker:
    """Reads shards with the teacher, commits them, and reports how far it is.

    Args:
        task: The capture.
        writer: Commits shards.
        teacher: The loaded teacher.
        budget: Padded tokens of a batch.
        progress: Shows how far the process is.
        beat: Called often while work goes on, to keep the process's heartbeat.
        forecast: The forecast without costs, to be completed after the second batch; None if the
            costs were forecast already.

    Attributes:
        turns: Counts turns that are not as they should be.
    """

    def __init__(
        self,
        task: Task,
        writer: CaptureWriter,
        teacher: Engine,
        budget: int,
        progress: Shows,
        beat: Callable[[], None],
        forecast: Forecast | None = None,
    ) -> None:
        self.task, self.writer = task, writer
        self.budget, self.progress, self.beat, self.forecast = budget, progress, beat, forecast
        self._teacher, self._reader = teacher, HalvingReader(teacher, writer.note)
        self._completer = completer_of(teacher, task, budget, beat)
        self._batches_read = 0
        self.turns = OddTurns(task, writer)

    def read_shard(self, index: int) -> ShardRecords:
        """Read a shard with the teacher: all of its sequences in order, each with its records."""
        sequences, weights = self._tokenise(index)
        lines = [s.line for s in sequences]
        records = [SequenceRecords(None)] * len(sequences)
        unread = [w for s, w in zip(sequences, weights, strict=True) if not s.records]
        self.progress.update(sum(unread), rows=_rows(unread))
        for batch, encoded in read_overlapped(
            self._reader, sequences, self.budget, self._after_batch
        ):
            for i, part in zip(batch, encoded, strict=True):
                records[i] = part
                if part.own is None:
                    lines[i] = self._skipped(lines[i], part)
            read = [weights[i] for i in batch]
            memory, used_bytes = peak_memory()
            used: Any = {memory: byte_count(used_bytes)}
            self.progress.update(
                sum(read),
                rows=_rows(read),
                tokens=sum(sequences[i].length for i in batch),
                **used,
                shard=f"{index + 1}/{self.task.plan.shard_count}",
            )
        self.task.watch.check()  # before anything of these rows is committed
        at_boundaries = [
            (_at_boundaries(line, sequence, part), part.boundaries)
            for line, sequence, part in zip(lines, sequences, records, strict=True)
        ]
        own = [(line, part.own) for line, part in zip(lines, records, strict=True)]
        return ShardRecords(own, at_boundaries)

    def commit(self, index: int, shard: ShardRecords) -> int:
        """Encode and commit a shard; runs on the committer's thread.

        Returns:
            The bytes of the shard that is there now, a twin's if that came first.
        """
        self.beat()
        self.writer.write_shard(index, shard.own, shard.boundaries)
        return self.writer.shard_bytes(index)

    def count_stored(self, size_bytes: int) -> None:
        """Add a committed shard's bytes to the progress."""
        self.progress.update(0, stored_bytes=size_bytes)

    def count_done_elsewhere(self, shards: Sequence[int]) -> None:
        """Add shards that other processes committed to the progress."""
        if shards:
            self.progress.update(self.task.work_of(shards), rows=self.task.rows_of(shards))

    def _skipped(self, line: SequenceText, records: SequenceRecords) -> SequenceText:
        event, why = records.status.replace("_", " "), {"why": records.why} if records.why else {}
        self.writer.note(event, row=line.row, part=line.part, **why)
        return line._replace(status=records.status)

    def _tokenise(self, index: int) -> tuple[list[TeacherSequence], list[int]]:
        """Make the sequences of a shard, with what each adds to the progress (bytes of text)."""
        sequences: list[TeacherSequence] = []
        weights: list[int] = []
        rows = range(*self.task.plan.shard_rows(index))
        text_bytes = self.task.text_of_rows(index).tolist()
        self.task.reader.turns.clear()
        reader = self.task.reader if self._completer is None else self._completer.complete(rows)
        for row, size in zip(rows, text_bytes, strict=True):
            self.beat()
            parts = reader.sequences(row)
            sequences += parts
            # An empty row counts for one, as in the plan; a row in windows when its first is done.
            weights += [size + 1, *[0] * (len(parts) - 1)]
        if isinstance(reader, CompletedRows):
            self.writer.note("generated", shard=index, **reader.counts())
        if self.task.reader.turns:
            self.turns.say(index, self.task.reader.turns)
        return sequences, weights

    def _after_batch(self, batch: Sequence[TeacherSequence], parts: Parts, seconds: float) -> None:
        """Beat; after the second batch, complete the forecast.

        Not after the first, which is slow: kernels are chosen and the head is checked. A long
        capture was forecast from trial batches before it began (see `trial_batches.py`).
        """
        self.beat()
        self._batches_read += 1
        if self.forecast is None or self._batches_read != 2:
            return
        lines = (s.line for s in batch)
        records = (each.own for each in self._reader.encode(parts))
        pairs: Pairs = list(zip(lines, records, strict=True))
        extrapolate(
            self.forecast,
            tokens_per_s=sum(s.length for s in batch) / max(seconds, 1e-9),
            size=stored_size(self.task.spec, self.task.plan, pairs),
            profile=profile_of([said.result for _, said in parts]),
            devices=self._teacher.devices,
        ).announce(self.progress.log)


def _rows(weights: Sequence[int]) -> int:
    """Count rows: of a row's sequences, the first alone weighs anything."""
    return sum(weight > 0 for weight in weights)


def _at_boundaries(
    line: SequenceText, sequence: TeacherSequence, records: SequenceRecords
) -> SequenceText:
    """Say in a line why it has no records at a student's boundaries, if it has none."""
    questions = sequence.questions
    if records.own is None or questions is None:
        return line
    if questions.status is not None:
        return line._replace(status=questions.status)
    return line if records.boundaries is not None else line._replace(status=NOT_FINITE)
