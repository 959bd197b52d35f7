"""Doing a capture: the missing shards of this rank one after the other, then the seal.

Batches never cross shards and are a function of shard and token budget alone, so a resumed run
forwards the same batches and ends with the same bytes (same machine, versions and thread count),
whatever the number of processes. Encoding and committing a shard happen on a second thread while
the teacher reads the next one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from logitstore.capture.batches import TeacherPass, batches
from logitstore.capture.preview import Outlook, Sample, outlook, seen, stored_size, take_sample
from logitstore.capture.task import Task
from logitstore.capture.windows import TeacherSequence
from logitstore.encode import EncodedRecords
from logitstore.errors import IncompleteStoreError
from logitstore.place import StorePath, names_in_or_none, size_bytes
from logitstore.progress import JsonLog, Progress, duration, progress
from logitstore.ranks import PATIENCE_S, Heartbeat, Ranks, signs_of_life, wait_until
from logitstore.records import SequenceText
from logitstore.remote import RemotePath
from logitstore.shard import shard_name
from logitstore.spec import DONE_FILE, SHARDS_FOLDER, SPEC_FILE
from logitstore.stopping import Stopped, Stopper
from logitstore.store import LogitStore, open_store
from logitstore.writer import StoreWriter, check_place

log = logging.getLogger(__name__)

#: How often to look whether others are done; in a bucket every look is a request that costs.
_POLL_FOLDER_S, _POLL_BUCKET_S = 0.2, 2.0
_AGAIN = "Run the same command again: it does only what is missing."


class Job:
    """One rank's part of a capture.

    Args:
        task: What is to be done.
        out: The store's folder, or its address in a bucket.
        make_writer: Opens the store for writing, and begins it if it is not there.
        ranks: Which process of how many this is.
        stop: Hears of signals.
        events: Where to log them.
    """

    def __init__(
        self,
        task: Task,
        out: StorePath,
        make_writer: Callable[[], StoreWriter],
        ranks: Ranks,
        stop: Stopper,
        events: JsonLog,
    ) -> None:
        self.task, self.out, self.make_writer = task, out, make_writer
        self.ranks, self.stop, self.events = ranks, stop, events
        self.sample: Sample | None = None

    def run(self) -> LogitStore:
        """Do this rank's missing shards; return the store when all ranks' are there.

        Raises:
            Stopped: A signal came; says what is there, and how to go on.
            IncompleteStoreError: Another rank gave no sign of life while this one waited for it.
        """
        try:
            writer = self._begin()
            if writer.is_sealed:
                log.info("%s is finished: all shards are there. Nothing to do.", self.out)
            else:
                self._do_own(writer)
                self._finish(writer)
        except Stopped as e:
            self.events.write("stopped", signal=e.signal_number)
            raise Stopped(e.signal_number, f"{e}. {self._state()}. {_AGAIN}") from None
        self.events.write("finished")
        return open_store(self.out)

    def _begin(self) -> StoreWriter:
        """The store to write to. Rank 0 first looks at some rows, and then may begin it."""
        is_begun = (self.out / SPEC_FILE).exists
        if not self.ranks.is_first:
            self._wait(is_begun, "to begin the store; is --out a folder that all ranks share?")
            return self.make_writer()
        writer = self.make_writer() if is_begun() else None
        if writer is None:
            check_place(self.out)
        if writer is None or writer.missing():
            self.sample = take_sample(self.task.reader, self.task.text_bytes)
            shards = self.task.plan.shard_count
            missing = shards if writer is None else len(writer.missing())
            log.info("%s", seen(self.sample, len(self.task.rows), missing, shards))
        if writer is None:
            _ = self.teacher  # one that cannot be loaded leaves no store behind
        return writer or self.make_writer()

    @cached_property
    def teacher(self) -> TeacherPass:
        """The teacher, with its weights."""
        return TeacherPass(self.task.teacher, self.task.spec, self.task.device(self.ranks))

    def _do_own(self, writer: StoreWriter) -> None:
        missing = self.ranks.own(writer.missing())
        budget = self.task.budget(writer)
        writer.note("capture", missing_shards=len(missing), tokens_per_batch=budget)
        if not missing:
            return
        heart = Heartbeat(self.out / SHARDS_FOLDER, self.ranks)
        heart.beat()
        teacher = self.teacher
        rows = sum(b - a for a, b in map(self.task.plan.shard_rows, missing))
        try:
            with progress(self.task.text_of(missing) + rows, "capture", "B", self.events) as shown:
                worker = _Worker(self.task, writer, teacher, budget, shown, heart)
                worker.outlook_of = None if self.sample is None else (self.sample, missing)
                self._shards(missing, worker)
        finally:
            heart.stop()

    def _shards(self, missing: Sequence[int], worker: "_Worker") -> None:
        pending: Future[int] | None = None
        with ThreadPoolExecutor(max_workers=1) as committer, self.stop.unhurried():
            for index in missing:
                sequences = worker.read_shard(index)
                if pending is not None:
                    worker.stored(pending.result())  # at most one shard waits: memory is bounded
                pending = committer.submit(worker.commit, index, sequences)
                if self.stop.asked is not None:
                    break
            if pending is not None:
                worker.stored(pending.result())
        if self.stop.asked is not None:
            raise Stopped(self.stop.asked, "stopped after a whole shard")

    def _finish(self, writer: StoreWriter) -> None:
        if self.ranks.is_first:
            if self.ranks.size > 1:
                log.info("%s: done; waiting for the shards of the others.", self.ranks)
                self._wait(lambda: not writer.missing(), "for their shards")
            writer.seal()
        else:
            self._wait((self.out / DONE_FILE).exists, "for rank 0 to seal the store")

    def _wait(self, is_done: Callable[[], bool], for_what: str) -> None:
        shards = self.out / SHARDS_FOLDER
        poll_s = _POLL_BUCKET_S if isinstance(self.out, RemotePath) else _POLL_FOLDER_S
        if not wait_until(
            is_done, lambda: signs_of_life(shards), patience_s=PATIENCE_S, poll_s=poll_s
        ):
            raise IncompleteStoreError(
                f"{self.out}: {self.ranks} waited {for_what}, and for {duration(PATIENCE_S)} no "
                f"other rank gave a sign of life. {self._state()}. See what the other ranks said. "
                f"{_AGAIN}"
            )

    def _state(self) -> str:
        count, there = self.task.plan.shard_count, set(names_in_or_none(self.out / SHARDS_FOLDER))
        held = sum(shard_name(i) in there for i in range(count))
        return f"{self.out}: {held:,} of {count:,} shards are there, each of them whole"


class _Worker:
    """Reads and commits shards, and tells how far it is."""

    def __init__(
        self,
        task: Task,
        writer: StoreWriter,
        teacher: TeacherPass,
        budget: int,
        shown: Progress,
        heart: Heartbeat,
    ) -> None:
        self.task, self.writer, self.teacher = task, writer, teacher
        self.budget, self.shown, self.heart = budget, shown, heart
        self.outlook_of: tuple[Sample, Sequence[int]] | None = None
        self._batches = 0

    def read_shard(self, index: int) -> list[tuple[SequenceText, EncodedRecords | None]]:
        """All sequences of a shard, in order, each with its records."""
        sequences, weights = self._tokenise(index)
        records: list[EncodedRecords | None] = [None] * len(sequences)
        self.shown.update(sum(w for s, w in zip(sequences, weights, strict=True) if not s.records))
        for batch in batches(sequences, self.budget):
            self.heart.beat()
            chosen = [sequences[i] for i in batch]
            began = time.monotonic()
            encoded = self.teacher.read(chosen)
            self._tell_outlook(chosen, encoded, time.monotonic() - began)
            for i, part in zip(batch, encoded, strict=True):
                records[i] = part
            self.shown.update(
                sum(weights[i] for i in batch),
                tokens=sum(s.length for s in chosen),
                shard=f"{index + 1}/{self.task.plan.shard_count}",
            )
        return [(s.line, r) for s, r in zip(sequences, records, strict=True)]

    def commit(self, index: int, pairs: list[tuple[SequenceText, EncodedRecords | None]]) -> int:
        """On the committer's thread: the bytes of the shard, which is there now."""
        self.writer.write_shard(index, pairs)
        size = size_bytes(self.writer.path / SHARDS_FOLDER / shard_name(index))
        records = sum(len(r) for _, r in pairs if r is not None)
        self.shown.log.write("shard", shard=index, records=records, stored_bytes=size)
        return size

    def stored(self, size_bytes: int) -> None:
        """A shard of so many bytes is committed."""
        self.shown.update(0, stored_bytes=size_bytes)

    def _tokenise(self, index: int) -> tuple[list[TeacherSequence], list[int]]:
        """The sequences of a shard; and what each adds to the progress, in bytes of text."""
        sequences: list[TeacherSequence] = []
        weights: list[int] = []
        for row in range(*self.task.plan.shard_rows(index)):
            self.heart.beat()
            parts = self.task.reader.sequences(row)
            sequences += parts
            # An empty row counts for one, as in the plan; a row in windows when its first is done.
            weights += [int(self.task.text_bytes[row]) + 1, *[0] * (len(parts) - 1)]
        return sequences, weights

    def _tell_outlook(
        self, batch: Sequence[TeacherSequence], encoded: Sequence[EncodedRecords], seconds: float
    ) -> None:
        """Once, after the second batch: the first is slow, kernels are chosen and heads checked."""
        self._batches += 1
        if self.outlook_of is None or self._batches != 2:
            return
        sample, missing = self.outlook_of
        pairs = [(s.line, r) for s, r in zip(batch, encoded, strict=True)]
        size = stored_size(self.task.spec, self.task.plan, pairs)
        speed = sum(s.length for s in batch) / max(seconds, 1e-9)
        found: Outlook = outlook(sample, self.task.text_of(missing), len(missing), speed, size)
        log.info("%s", found)
        self.shown.log.write("outlook", **vars(found))
