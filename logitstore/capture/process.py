"""Capture as one process: begin or resume a store, have the missing shards done, seal it.

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
   the one before is encoded on a second thread (passes/). `Hands` do this: those of the process
   itself (in_process.py), or a driver's, which hands shards to teachers on other machines.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from logitstore.capture.boundaries.cost import check_asked
from logitstore.capture.estimate.sample import Sample, sample_text, take_sample
from logitstore.capture.lost_rows import check_sample, warn_of_lost
from logitstore.capture.passes.engine import NOT_FINITE
from logitstore.capture.sharing.sharing import (
    AGAIN,
    Sharing,
    shards_present,
)
from logitstore.capture.task import Task
from logitstore.capture.writer import CaptureWriter
from logitstore.console.json_log import JsonLog
from logitstore.console.signals import Stopped
from logitstore.format.spec import SPEC_FILE
from logitstore.storage.paths import StorePath
from logitstore.store import LogitStore, open_store
from logitstore.writing.places import check_place

log = logging.getLogger(__name__)

_NOTHING: Mapping[str, Any] = {}


class Hands(Protocol):
    """Have the teacher, here (`InThisProcess`) or in other processes that they hand shards to."""

    def try_teacher(self, sample: Sample) -> dict[str, Any]:
        """Load the teacher and try it, before there is a store.

        Returns:
            What the store has to record of it.
        """

    def do(
        self, missing: list[int], writer: CaptureWriter, budget: int, sample: Sample | None
    ) -> None:
        """Capture the shards that fall to this process.

        Args:
            missing: Those that are known to be missing now.
            writer: Of the store, which is begun.
            budget: Padded tokens of a batch.
            sample: Some rows of the dataset; None where this process did not look at any.

        Raises:
            Stopped: A signal came.
        """

    def close(self) -> None:
        """Let go of the teacher, if it was loaded."""


class CaptureProcess:
    """Runs one process's part of a capture.

    Args:
        task: The capture.
        out: The store's folder, or its address in a bucket.
        make_writer: Opens the store for writing, and begins it if it is not there. Takes what a
            new store records of its making, besides what the task says.
        sharing: Says which shards fall to this process.
        hands: Have the teacher do them.
        events: The log of `--log-json`.
    """

    def __init__(
        self,
        task: Task,
        out: StorePath,
        make_writer: Callable[[Mapping[str, Any]], CaptureWriter],
        sharing: Sharing,
        hands: Hands,
        events: JsonLog,
    ) -> None:
        self.task, self.out, self.make_writer = task, out, make_writer
        self.sharing, self.hands, self.events = sharing, hands, events
        self.sample: Sample | None = None

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
            self.hands.close()
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
            assert self.sample is not None
            writer = self._open(at_work, self.hands.try_teacher(self.sample))
        return writer

    def _open(self, at_work: ExitStack, measured: Mapping[str, Any] = _NOTHING) -> CaptureWriter:
        writer = self.make_writer(measured)
        writer.journal.listeners.append(self.events.write)
        if not writer.is_sealed:
            at_work.enter_context(self.sharing.at_work())
        return writer

    def _look_at_rows(self, missing: Sequence[int]) -> None:
        task = self.task
        self.sample = take_sample(task.reader, task.sizes)
        check_sample(self.sample, task.rows.name, len(task.rows), task.settings)
        if task.student is not None:
            check_asked(task.student, self.sample.sequences)
        shards = task.plan.shard_count
        log.info("%s", sample_text(self.sample, len(task.rows), len(missing), shards))

    def _do_missing(self, writer: CaptureWriter) -> None:
        missing = self.sharing.missing(writer)
        budget = self.task.budget(writer.provenance)
        writer.note("capture", missing_shards=len(missing), tokens_per_batch=budget)
        try:
            if missing or writer.lacks_lm_head:
                self.sharing.beat()
                self.hands.do(missing, writer, budget, self.sample)
                self.sharing.stop()
            self.sharing.finish(writer)
        finally:
            self.sharing.stop()


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
