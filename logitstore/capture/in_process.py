"""Do the shards of a capture in this process: its own teacher reads them, one after the other."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from logitstore.capture.estimate.forecast import Forecast
from logitstore.capture.estimate.sample import Sample
from logitstore.capture.own_teacher import OwnTeacher
from logitstore.capture.shard_worker import ShardRecords, ShardWorker
from logitstore.capture.sharing.sharing import POLL_S, Sharing
from logitstore.capture.task import Task
from logitstore.capture.writer import CaptureWriter
from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import Ranks
from logitstore.console.progress import progress
from logitstore.console.signals import Stopped, Stopper


class InThisProcess:
    """Reads and commits the shards that fall to this process.

    Args:
        task: The capture.
        ranks: Which process of how many this is.
        sharing: Says which shards these are.
        stop: Tells whether a signal asked to stop.
        events: The log of `--log-json`.
    """

    def __init__(
        self, task: Task, ranks: Ranks, sharing: Sharing, stop: Stopper, events: JsonLog
    ) -> None:
        self.task, self.sharing, self.stop, self.events = task, sharing, stop, events
        self.teacher = OwnTeacher(task, ranks)
        self._has_forecast = False

    def try_teacher(self, sample: Sample) -> dict[str, Any]:
        """Load the teacher and try it, before there is a store."""
        tried = self.teacher.try_it(sample)
        if tried.forecast is not None:
            tried.forecast.announce(self.events)
            self._has_forecast = True
        return tried.measured

    def close(self) -> None:
        """Let go of the teacher."""
        self.teacher.close()

    def do(
        self, missing: list[int], writer: CaptureWriter, budget: int, sample: Sample | None
    ) -> None:
        """Capture the shards that fall to this process, as long as there are any."""
        engine = self.teacher.engine
        # Of a resumed store, or another process's. A rank that may not begin it took no sample yet.
        if tried := self.teacher.self_test(budget, sample):
            writer.note("self-test", **tried["self_test"])
        writer.keep_lm_head(engine)
        to_complete = None
        if sample is not None and sample.records and not self._has_forecast:
            own = sorted(set(missing) & set(writer.own.missing()))
            to_complete = Forecast.before_teacher(self.task, sample, missing, own)
        work, rows = self.task.work_of(missing), self.task.rows_of(missing)
        with progress(work, "capture", "B", self.events, rows) as shown:
            beat = self.sharing.beat
            worker = ShardWorker(self.task, writer, engine, budget, shown, beat, to_complete)
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
