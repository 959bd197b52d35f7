"""One process's work on shards: rows to sequences, sequences to records, records to a file."""

from collections.abc import Callable, Sequence

from logitstore.capture.estimate.forecast import Foretold, Pairs, announce, outlook, stored_size
from logitstore.capture.estimate.profile import profile_of
from logitstore.capture.estimate.sample import Sample
from logitstore.capture.passes.generate import CompletedRows, Completer
from logitstore.capture.passes.overlap import read_overlapped
from logitstore.capture.passes.split_on_oom import HalvingReader, Parts
from logitstore.capture.passes.teacher_pass import TeacherPass
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.task import Task
from logitstore.console.progress import Progress
from logitstore.format.encoded import EncodedRecords
from logitstore.format.spec import SHARDS_FOLDER, shard_name
from logitstore.records import SequenceText
from logitstore.storage.paths import size_bytes
from logitstore.writing.writer import StoreWriter

Sequences = list[tuple[SequenceText, EncodedRecords | None]]

#: The status of a sequence whose logits were not finite, with `--on-nan skip`.
NOT_FINITE = "not_finite"


class Worker:
    """Reads and commits shards, and tells how far it is.

    Args:
        task: What is to be done.
        writer: Commits shards.
        teacher: Reads batches.
        budget: Padded tokens of a batch.
        shown: Progress.
        beat: Called while work goes on.
    """

    def __init__(
        self,
        task: Task,
        writer: StoreWriter,
        teacher: TeacherPass,
        budget: int,
        shown: Progress,
        beat: Callable[[], None],
    ) -> None:
        self.task, self.writer = task, writer
        self.budget, self.shown, self.beat = budget, shown, beat
        self.outlook_of: tuple[Sample, Sequence[int]] | None = None
        self._teacher, self._reader = teacher, HalvingReader(teacher, self._note)
        self._completer = Completer.of(teacher, task, budget, beat)
        self._batches = 0

    def read_shard(self, index: int) -> Sequences:
        """All sequences of a shard, in order, each with its records."""
        sequences, weights = self._tokenise(index)
        lines = [s.line for s in sequences]
        records: list[EncodedRecords | None] = [None] * len(sequences)
        self.shown.update(sum(w for s, w in zip(sequences, weights, strict=True) if not s.records))
        for batch, encoded in read_overlapped(self._reader, sequences, self.budget, self._heard):
            for i, part in zip(batch, encoded, strict=True):
                records[i] = part
                if part is None:
                    lines[i] = self._not_finite(lines[i])
            self.shown.update(
                sum(weights[i] for i in batch),
                tokens=sum(sequences[i].length for i in batch),
                shard=f"{index + 1}/{self.task.plan.shard_count}",
            )
        return list(zip(lines, records, strict=True))

    def commit(self, index: int, pairs: Sequences) -> int:
        """On the committer's thread: the bytes of the shard, which is there now."""
        self.beat()
        self.writer.write_shard(index, pairs)
        size = size_bytes(self.writer.path / SHARDS_FOLDER / shard_name(index))
        records = sum(len(r) for _, r in pairs if r is not None)
        self.shown.log.write("shard", shard=index, records=records, stored_bytes=size)
        return size

    def stored(self, size_bytes: int) -> None:
        """A shard of so many bytes is committed."""
        self.shown.update(0, stored_bytes=size_bytes)

    def done_elsewhere(self, shards: Sequence[int]) -> None:
        """Other processes have committed these."""
        if shards:
            self.shown.update(self.task.work_of(shards))

    def _not_finite(self, line: SequenceText) -> SequenceText:
        self._note("not finite", row=line.row, part=line.part)
        return line._replace(status=NOT_FINITE)

    def _note(self, event: str, **facts: object) -> None:
        self.writer.note(event, **facts)
        self.shown.log.write(event, **facts)

    def _tokenise(self, index: int) -> tuple[list[TeacherSequence], list[int]]:
        """The sequences of a shard; and what each adds to the progress, in bytes of text."""
        sequences: list[TeacherSequence] = []
        weights: list[int] = []
        rows = range(*self.task.plan.shard_rows(index))
        reader = self.task.reader if self._completer is None else self._completer.complete(rows)
        for row in rows:
            self.beat()
            parts = reader.sequences(row)
            sequences += parts
            # An empty row counts for one, as in the plan; a row in windows when its first is done.
            weights += [int(self.task.text_bytes[row]) + 1, *[0] * (len(parts) - 1)]
        if isinstance(reader, CompletedRows):
            self.shown.log.write("generated", shard=index, **reader.counts())
        return sequences, weights

    def _heard(self, batch: Sequence[TeacherSequence], parts: Parts, seconds: float) -> None:
        """Once, after the second batch: the first is slow, kernels are chosen and heads checked.

        For a short capture, or one that goes on; a long one was foretold at its head.
        """
        self.beat()
        self._batches += 1
        if self.outlook_of is None or self._batches != 2:
            return
        sample, missing = self.outlook_of
        lines = (s.line for s in batch)
        pairs: Pairs = list(zip(lines, self._reader.encode(parts), strict=True))
        size = stored_size(self.task.spec, self.task.plan, pairs)
        speed = sum(s.length for s in batch) / max(seconds, 1e-9)
        found = outlook(
            sample, self.task.text_of(missing), len(missing), speed, size, self._teacher.devices
        )
        announce(
            Foretold(found, size, profile_of([result for _, result, _ in parts])), self.shown.log
        )
