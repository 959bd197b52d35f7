"""Doing a capture: the missing shards of this process one after the other, then the seal.

Batches never cross shards and are a function of shard and token budget alone, so a resumed run
forwards the same batches and ends with the same bytes (same machine, versions and thread count),
whatever the number of processes. Encoding and committing a shard happen on a second thread while
the teacher reads the next one.
"""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property

from logitstore.capture.estimate.budget import find_budget
from logitstore.capture.estimate.forecast import announce
from logitstore.capture.estimate.sample import Sample, seen, take_sample
from logitstore.capture.estimate.trial_batches import foretell_at_head
from logitstore.capture.passes.teacher_pass import TeacherPass
from logitstore.capture.shard_worker import NOT_FINITE, Sequences, Worker
from logitstore.capture.sharing.sharing import (
    AGAIN,
    POLL_S,
    ByClaim,
    ByRank,
    Sharing,
    shards_present,
)
from logitstore.capture.task import Task
from logitstore.console.launcher import Ranks
from logitstore.console.progress import JsonLog, progress
from logitstore.console.signals import Stopped, Stopper
from logitstore.format.spec import SPEC_FILE
from logitstore.storage.paths import StorePath
from logitstore.store import LogitStore, open_store
from logitstore.writing.writer import StoreWriter, check_place

log = logging.getLogger(__name__)


class Job:
    """One process's part of a capture.

    Args:
        task: What is to be done.
        out: The store's folder, or its address in a bucket.
        make_writer: Opens the store for writing, and begins it if it is not there; takes the
            tokens of a batch that a new store records, or None for those of the task.
        ranks: Which process of how many this is.
        stop: Hears of signals.
        events: Where to log them.
    """

    def __init__(
        self,
        task: Task,
        out: StorePath,
        make_writer: Callable[[int | None], StoreWriter],
        ranks: Ranks,
        stop: Stopper,
        events: JsonLog,
    ) -> None:
        self.task, self.out, self.make_writer = task, out, make_writer
        self.ranks, self.stop, self.events = ranks, stop, events
        self.sample: Sample | None = None
        self.is_foretold = False
        self.sharing: Sharing = (
            ByClaim(out) if task.settings.claim else ByRank(out, task.plan.shard_count, ranks)
        )

    def run(self) -> LogitStore:
        """Do this process's missing shards; return the store when all are there.

        Raises:
            Stopped: A signal came; says what is there, and how to go on.
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
            where = shards_present(self.out, self.task.plan.shard_count)
            raise Stopped(e.signal_number, f"{e}. {where}. {AGAIN}") from None
        self.events.write("finished")
        store = open_store(self.out)
        _warn_of_skipped(store)
        return store

    def _begin(self, at_work: ExitStack) -> StoreWriter:
        """The store to write to. Who may begin it first looks at some rows, and at the teacher."""
        if not self.sharing.may_begin:
            self.sharing.wait_for_begin()
        is_new = not (self.out / SPEC_FILE).exists()
        if is_new:
            check_place(self.out)
        else:
            writer = self._open(at_work)
        if self.sharing.may_begin and (is_new or writer.missing()):
            self._look(range(self.task.plan.shard_count) if is_new else writer.missing())
        if is_new:
            writer = self._open(at_work, self._ask_teacher())
        return writer

    def _open(self, at_work: ExitStack, budget: int | None = None) -> StoreWriter:
        writer = self.make_writer(budget)
        if not writer.is_sealed:
            at_work.enter_context(self.sharing.at_work())
        return writer

    def _look(self, missing: "range | list[int]") -> None:
        self.sample = take_sample(self.task.reader, self.task.text_bytes)
        shards = self.task.plan.shard_count
        log.info("%s", seen(self.sample, len(self.task.rows), len(missing), shards))

    def _ask_teacher(self) -> int | None:
        """Before there is a store: one that cannot be loaded, or fails at once, leaves none behind.

        Returns:
            The tokens of a batch that the store is to record, if they were to be found out.
        """
        assert self.sample is not None
        task, found = self.task, None
        if task.wants_budget:
            found = find_budget(task, self.teacher, self.sample).tokens
        budget = found or int(task.provenance["tokens_per_batch"])
        said = foretell_at_head(task, self.teacher, self.sample, budget)
        if said is not None:
            announce(said, self.events)
            self.is_foretold = True
        return found

    @cached_property
    def teacher(self) -> TeacherPass:
        """The teacher, with its weights."""
        task = self.task
        return TeacherPass(
            task.teacher, task.spec, task.device(self.ranks), on_nan=task.settings.on_nan
        )

    def _do_missing(self, writer: StoreWriter) -> None:
        missing = self.sharing.missing(writer)
        budget = self.task.budget(writer)
        writer.note("capture", missing_shards=len(missing), tokens_per_batch=budget)
        try:
            if missing:
                self.sharing.beat()
                self._do(missing, writer, budget)
                self.sharing.stop()
            self.sharing.finish(writer)
        finally:
            self.sharing.stop()

    def _do(self, missing: list[int], writer: StoreWriter, budget: int) -> None:
        teacher = self.teacher
        with progress(self.task.work_of(missing), "capture", "B", self.events) as shown:
            worker = Worker(self.task, writer, teacher, budget, shown, self.sharing.beat)
            if self.sample is not None and self.sample.records and not self.is_foretold:
                worker.outlook_of = (self.sample, missing)
            self._shards(writer, worker)

    def _shards(self, writer: StoreWriter, worker: Worker) -> None:
        pending: Future[int] | None = None
        with ThreadPoolExecutor(max_workers=1) as committer, self.stop.unhurried():
            for index in self.sharing.shards(writer):
                sequences = None if index is None else worker.read_shard(index)
                worker.done_elsewhere(self.sharing.done_by_others())
                if pending is not None:
                    worker.stored(pending.result())  # at most one shard waits: memory is bounded
                    pending = None
                elif index is None:
                    time.sleep(POLL_S)  # all that is missing is in others' hands
                if index is not None and sequences is not None:
                    pending = committer.submit(self._commit, worker, index, sequences)
                if self.stop.asked is not None:
                    break
            if pending is not None:
                worker.stored(pending.result())
        if self.stop.asked is not None:
            raise Stopped(self.stop.asked, "stopped after a whole shard")

    def _commit(self, worker: Worker, index: int, sequences: Sequences) -> int:
        try:
            return worker.commit(index, sequences)
        finally:
            self.sharing.done(index)


def _warn_of_skipped(store: LogitStore) -> None:
    """What `--on-nan skip` left out, at the end, where it is seen."""
    skipped = sum(json.loads(f["statuses"]).get(NOT_FINITE, 0) for f in store.shard_facts)
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
