"""Capture as one process: begin or resume a store, do the missing shards, seal it.

A capture may run in many processes at once; this is the life of one of them.

1. *Before it starts,* `prepare` (task.py) has cut the dataset into shards, the same in every
   process: shard i holds the same rows whoever writes it, on whichever day.
2. *It opens the store, or begins it:* only after the teacher is loaded, has said the same of rows
   alone and in a batch and, in a long capture, has read some trial batches, so that a capture that
   cannot work leaves nothing behind. Each other process tries its own teacher, on its own device,
   before its first shard: the store has the figures of the process that began it, the journal those
   of all others.
3. *It takes a missing shard:* those of its rank, one after the other, or with `--claim` the next
   that nobody has (sharing/).
4. *Rows become records:* the shard's rows are rendered, tokenised and cut to sequences; these are
   sorted by length into batches of at most `budget` padded tokens; the teacher reads a batch while
   the one before is encoded on a second thread (passes/).
5. *Records become a shard:* a third thread compresses them and commits the file, whole or not at
   all, while the teacher reads the next shard. At most one waits, so memory is bounded.
6. *A kill costs the shards in hand,* one being read and one being committed, and nothing else. The
   next run lists what is there and does the rest. The first Ctrl-C ends after the shard in hand.
7. *When none is missing, one process seals:* rank 0, or whoever of the claiming workers takes the
   claim on the seal. The others wait for it, so every process returns with a finished store.

Batches never cross shards and are a function of shard and budget alone, so a resumed run forwards
the same batches and ends with the same bytes (same machine, versions and thread count), whatever
the number of processes.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from logitstore.capture.boundaries.cost import check_asked
from logitstore.capture.estimate.budget import find_budget
from logitstore.capture.estimate.forecast import Forecast
from logitstore.capture.estimate.sample import Sample, sample_text, take_sample
from logitstore.capture.estimate.trial_batches import forecast_if_cheap
from logitstore.capture.lost_rows import check_sample, warn_of_lost
from logitstore.capture.passes.check_places import check_places
from logitstore.capture.passes.choose import load_engine
from logitstore.capture.passes.engine import NOT_FINITE, Engine
from logitstore.capture.passes.self_test import try_teacher
from logitstore.capture.shard_worker import ShardRecords, ShardWorker
from logitstore.capture.sharing.sharing import (
    AGAIN,
    POLL_S,
    ByClaim,
    ByRank,
    Sharing,
    shards_present,
)
from logitstore.capture.task import Task
from logitstore.capture.writer import CaptureWriter
from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import Ranks
from logitstore.console.progress import progress
from logitstore.console.signals import Stopped, Stopper
from logitstore.format.spec import SPEC_FILE
from logitstore.storage.paths import StorePath
from logitstore.store import LogitStore, open_store
from logitstore.writing.places import check_place

log = logging.getLogger(__name__)

_NOTHING: Mapping[str, Any] = {}


class CaptureProcess:
    """Runs one process's part of a capture.

    Args:
        task: The capture.
        out: The store's folder, or its address in a bucket.
        make_writer: Opens the store for writing, and begins it if it is not there. Takes what a
            new store records of its making, besides what the task says.
        ranks: Which process of how many this is.
        stop: Tells whether a signal asked to stop.
        events: The log of `--log-json`.
    """

    def __init__(
        self,
        task: Task,
        out: StorePath,
        make_writer: Callable[[Mapping[str, Any]], CaptureWriter],
        ranks: Ranks,
        stop: Stopper,
        events: JsonLog,
    ) -> None:
        self.task, self.out, self.make_writer = task, out, make_writer
        self.ranks, self.stop, self.events = ranks, stop, events
        self.sample: Sample | None = None
        self.has_forecast = self.has_tried = False
        self.sharing: Sharing = (
            ByClaim(out) if task.settings.claim else ByRank(out, task.plan.shard_count, ranks)
        )

    def run(self) -> LogitStore:
        """Do this process's missing shards; return the store when all are there.

        Raises:
            Stopped: A signal came; says what is there, and how to resume.
            BusyError: Another capture writes this store, and the two do not share it.
            IncompleteStoreError: Another rank had no heartbeat while this one waited for it.
        """
        try:
            with ExitStack() as at_work:
                writer = self._begin(at_work)
                if writer.is_sealed:
                    log.info("%s is finished: all shards are there. Nothing to do.", self.out)
                else:
                    self._do_missing(writer)
        except Stopped as e:
            self.events.write("stopped", signal=e.signal_number)
            present = shards_present(self.out, self.task.plan.shard_count)
            raise Stopped(e.signal_number, f"{e}. {present}. {AGAIN}") from None
        finally:
            if "teacher" in vars(self):
                self.teacher.close()
        self.events.write("finished")
        store = open_store(self.out)
        _warn_of_skipped(store)
        warn_of_lost(store, self.task.settings)
        return store

    def _begin(self, at_work: ExitStack) -> CaptureWriter:
        """Open the store; begin it, if this process may, once rows and teacher were tried."""
        if not self.sharing.may_begin:
            self.sharing.wait_for_begin()
        is_new = not (self.out / SPEC_FILE).exists()
        if is_new:
            check_place(self.out)
        else:
            writer = self._open(at_work)
        if self.sharing.may_begin and (is_new or writer.missing()):
            self._look_at_rows(range(self.task.plan.shard_count) if is_new else writer.missing())
        if is_new:
            writer = self._open(at_work, self._try_teacher())
        return writer

    def _open(self, at_work: ExitStack, measured: Mapping[str, Any] = _NOTHING) -> CaptureWriter:
        writer = self.make_writer(measured)
        writer.journal.listeners.append(self.events.write)
        if not writer.is_sealed:
            at_work.enter_context(self.sharing.at_work())
        return writer

    def _look_at_rows(self, missing: Sequence[int]) -> None:
        task = self.task
        self.sample = take_sample(task.reader, task.text_bytes)
        check_sample(self.sample, task.rows.name, len(task.rows), task.settings)
        if task.student is not None:
            check_asked(task.student, self.sample.sequences)
        shards = task.plan.shard_count
        log.info("%s", sample_text(self.sample, len(task.rows), len(missing), shards))

    def _try_teacher(self) -> dict[str, Any]:
        """Load the teacher, try it and read trial batches, before there is a store.

        Returns:
            What the store has to record of it.
        """
        assert self.sample is not None
        task, measured = self.task, dict[str, Any]()
        if task.wants_budget:
            measured["tokens_per_batch"] = find_budget(task, self.teacher, self.sample)
        budget = int((task.provenance | measured)["tokens_per_batch"])
        measured |= self._self_test(budget) | _odd_turns(self.sample)
        if self.teacher.versions:
            measured["versions"] = task.provenance["versions"] | dict(self.teacher.versions)
        forecast = forecast_if_cheap(task, self.teacher, self.sample, budget)
        if forecast is not None:
            forecast.announce(self.events)
            self.has_forecast = True
        return measured

    def _self_test(self, budget: int) -> dict[str, Any]:
        """Try once in this process, on its own device, whether text, tokens and answers fit.

        Returns:
            What was found, for the store and the journal; nothing where it was not tried.
        """
        task = self.task
        if self.has_tried or not task.settings.self_test:
            return {}
        self.has_tried = True
        # A rank that may not begin the store has not looked at rows yet.
        sample = self.sample or take_sample(task.reader, task.text_bytes)
        name = str(task.provenance["teacher"]) + (f" ({self.ranks})" if self.ranks.size > 1 else "")
        check_places(task.reader.tokenizer, sample.sequences, name)
        found = try_teacher(self.teacher, sample.sequences, budget, task.reader.limits.max_length)
        if found is None:
            return {}
        found.check(name)
        if found.doubt:
            log.warning("%s: %s. --no-self-test silences this.", name, found.doubt)
        return {"self_test": found.facts()}

    @cached_property
    def teacher(self) -> Engine:
        """Load the teacher, once."""
        return load_engine(self.task, self.ranks)

    def _do_missing(self, writer: CaptureWriter) -> None:
        missing = self.sharing.missing(writer)
        budget = self.task.budget(writer.provenance)
        writer.note("capture", missing_shards=len(missing), tokens_per_batch=budget)
        try:
            if missing:
                self.sharing.beat()
                self._do(missing, writer, budget)
                self.sharing.stop()
            self.sharing.finish(writer)
        finally:
            self.sharing.stop()

    def _do(self, missing: list[int], writer: CaptureWriter, budget: int) -> None:
        teacher = self.teacher
        if tried := self._self_test(budget):  # of a resumed store, or another process's
            writer.note("self-test", **tried["self_test"])
        to_complete = None
        if self.sample is not None and self.sample.records and not self.has_forecast:
            own = sorted(set(missing) & set(writer.own.missing()))
            to_complete = Forecast.before_teacher(self.task, self.sample, missing, own)
        with progress(self.task.work_of(missing), "capture", "B", self.events) as shown:
            beat = self.sharing.beat
            worker = ShardWorker(self.task, writer, teacher, budget, shown, beat, to_complete)
            self._do_shards(writer, worker)
            worker.turns.say_in_all()

    def _do_shards(self, writer: CaptureWriter, worker: ShardWorker) -> None:
        committing: Future[int] | None = None
        with ThreadPoolExecutor(max_workers=1) as committer, self.stop.graceful():
            for index in self.sharing.shards(writer):
                sequences = None if index is None else worker.read_shard(index)
                worker.count_done_elsewhere(self.sharing.done_by_others())
                if committing is not None:
                    worker.count_stored(committing.result())  # one at most waits: memory is bounded
                    committing = None
                elif index is None:
                    time.sleep(POLL_S)  # other processes have all that is missing
                if index is not None and sequences is not None:
                    committing = committer.submit(self._commit, worker, index, sequences)
                if self.stop.asked is not None:
                    break
            if committing is not None:
                worker.count_stored(committing.result())
        if self.stop.asked is not None:
            raise Stopped(self.stop.asked, "stopped after a whole shard")

    def _commit(self, worker: ShardWorker, index: int, sequences: ShardRecords) -> int:
        try:
            return worker.commit(index, sequences)
        finally:
            self.sharing.done(index)


def _odd_turns(sample: Sample) -> dict[str, Any]:
    """Describe for the store the turns of a sample that cannot be used whole; mostly there is none.

    A kind that there is none of has no key.
    """
    counts = {kind: count for kind, count in sample.turns.items() if count}
    return {"turns": {"rows": sample.rows, **counts}} if counts else {}


def _warn_of_skipped(store: LogitStore) -> None:
    """Warn at the end, where it is seen, of sequences that `--on-nan skip` left without records."""
    skipped = store.statuses.get(NOT_FINITE, 0)
    if skipped:
        log.warning(
            "%s: %s of %s sequences have no records, for the teacher's logits were not finite "
            "(--on-nan skip). `logitstore info` counts them as %s; the journal beside the store "
            "names their rows.",
            store.path,
            f"{skipped:,}",
            f"{len(store):,}",
            NOT_FINITE,
        )
