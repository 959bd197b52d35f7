"""The hands of a capture on a Ray cluster: plan here, teachers elsewhere."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from logitstore.capture.checked import SERVER, TRANSFORMERS
from logitstore.capture.estimate.sample import Sample
from logitstore.capture.odd_turns import OddTurns
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.sharing.claims import sign_of_alone
from logitstore.capture.sharing.sharing import AGAIN, folder_of_claims, shards_present
from logitstore.capture.task import Task
from logitstore.capture.text_sizes import TextSizes
from logitstore.capture.writer import CaptureWriter
from logitstore.console.json_log import JsonLog
from logitstore.console.progress import Progress, progress
from logitstore.console.signals import Stopped, Stopper
from logitstore.errors import InputError, LogitStoreError
from logitstore.format.numpy_types import I64
from logitstore.format.spec import SPEC_FILE
from logitstore.ray.cluster import Needs, Room
from logitstore.ray.crew import Crew
from logitstore.ray.messages import Begun, Failure, Job, Said, ShardRows
from logitstore.ray.settings import RaySettings
from logitstore.rows.part import Part
from logitstore.storage.paths import StorePath

log = logging.getLogger(__name__)
_WORKER_LOG = logging.getLogger("logitstore.ray.teachers")


class RayHands:
    """Has the shards of a capture done by teachers on a cluster.

    Args:
        task: The capture.
        out: The store.
        settings: How many teachers there are to be, and how often one may die.
        needs: What each teacher holds.
        stop: Tells whether a signal asked to stop.
        events: The log of `--log-json`.
    """

    def __init__(
        self,
        task: Task,
        out: StorePath,
        settings: RaySettings,
        needs: Needs,
        stop: Stopper,
        events: JsonLog,
    ) -> None:
        self.task, self.out, self.settings, self.needs = task, out, settings, needs
        self.stop, self.events = stop, events
        self._crew: Crew | None = None
        self._lines: set[str] = set()
        self._tokens = 0
        self._odd: OddTurns | None = None

    def try_teacher(self, sample: Sample) -> dict[str, Any]:
        """Have one teacher tried, before there is a store."""
        rows, longest = trial_rows(self.task, sample), longest_rows(self.task)
        tried = self._hired(sample).try_it(self.task.sizes.for_trial(rows, longest))
        if tried.forecast is not None:
            tried.forecast.announce(self.events)
        return tried.measured

    def do(
        self, missing: list[int], writer: CaptureWriter, budget: int, sample: Sample | None
    ) -> None:
        """Hand out the missing shards until all are there, or cannot be.

        Raises:
            InputError: Some of them could not be captured; all others were.
        """
        assert sample is not None  # of every process that may begin the store
        crew, self._odd = self._hired(sample), OddTurns(self.task, writer)
        done: list[int] = []
        work, rows = self.task.work_of(missing), self.task.rows_of(missing)
        with progress(work, "capture", "B", self.events, rows) as shown:

            def after_step(newly: Sequence[int]) -> None:
                done.extend(newly)
                self._show(shown, crew, writer, done, newly, len(missing))

            with self.stop.graceful():
                crew.do(
                    missing,
                    self._begun(writer, budget),
                    self._rows_of,
                    is_asked_to_stop=lambda: self.stop.asked is not None,
                    after_step=after_step,
                )
            crew.hear_out()
            self._odd.say_in_all()
        if crew.fatal is not None:
            raise crew.fatal
        if self.stop.asked is not None:
            raise Stopped(self.stop.asked, "stopped after whole shards")
        if crew.failed:
            raise self._left_out(crew.failed)

    def close(self) -> None:
        """Let the teachers go."""
        if self._crew is not None:
            self._crew.end()
            self._crew = None

    def _hired(self, sample: Sample) -> Crew:
        if self._crew is None:
            job = job_of(self.task, sample, self.needs)
            restarts = self.settings.max_restarts
            self._crew = Crew(job, self.needs, self.settings.teachers, restarts, self._hear)
        return self._crew

    def _begun(self, writer: CaptureWriter, budget: int) -> Begun:
        folder = folder_of_claims(self.out)
        sign = None if folder is None else sign_of_alone(folder)
        return Begun(_whole(str(self.out)), (writer.path / SPEC_FILE).sha256(), sign, budget)

    def _rows_of(self, index: int) -> ShardRows:
        first, stop = self.task.plan.shard_rows(index)
        part = Part.of(self.task.rows, np.arange(first, stop))
        self.task.watch.check()  # what was taken is what the plan has the digest of
        sizes = TextSizes(range(first, stop), self.task.text_of_rows(index))
        return ShardRows(index, part, sizes)

    def _hear(self, said: Said) -> None:
        self._tokens += said.tokens
        for event, facts in said.events:
            self.events.write(event, **facts)
            if event == "turns" and self._odd is not None:
                counts = {kind: count for kind, count in facts.items() if kind != "shard"}
                self._odd.warn(facts["shard"], counts)
        for level, text in said.lines:
            if text not in self._lines:  # every teacher says the same of the same model
                self._lines.add(text)
                _WORKER_LOG.log(level, "%s", text)

    def _show(
        self,
        shown: Progress,
        crew: Crew,
        writer: CaptureWriter,
        done: list[int],
        newly: Sequence[int],
        count: int,
    ) -> None:
        tokens, self._tokens = self._tokens, 0
        stored = sum(writer.shard_bytes(i) for i in newly)
        facts = {"teachers": f"{crew.ready}", "shards": f"{len(done)}/{count}"}
        rows = self.task.rows_of(newly)
        shown.update(0, rows=rows, tokens=tokens, stored_bytes=stored)
        shown.reach(self.task.work_of(done) + crew.work_in_hand(), **facts)

    def _left_out(self, failed: dict[int, Failure]) -> LogitStoreError:
        index = min(failed)
        shards = self.task.plan.shard_count
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        error = failed[index].error()
        message = (
            f"shard {index + 1:,} of {shards:,}{more} could not be captured: "
            f"{failed[index].text} {shards_present(self.out, shards)}. {AGAIN}"
        )
        error.args = (message,)
        return error


def needs_of(given: CaptureSettings, settings: RaySettings, room: Room, named: str) -> Needs:
    """Decide what a teacher holds.

    Raises:
        InputError: No node has so much, and nobody said that the cluster grows.
    """
    engine = given.engine
    runs_on_cpu = given.device == "cpu" or engine == SERVER
    gpus = settings.gpus_per_teacher
    if gpus is None:
        gpus = float(min(room.gpus, 1.0) if not runs_on_cpu else 0.0)
    cpus = settings.cpus_per_teacher
    if cpus is None:
        threads = 1 if gpus or engine == SERVER else torch.get_num_threads()
        cpus = max(1, min(threads, int(room.cpus) or threads))
    # vLLM and the like start processes of their own, which may be on other nodes.
    is_spread = engine not in (TRANSFORMERS, SERVER) and gpus > max(room.gpus, 1.0)
    needs = Needs(gpus, cpus, is_spread)
    if settings.teachers is None and not needs.room(room):
        flag = f"--gpus-per-teacher is {gpus:g}" if gpus > room.gpus else f"{named}"
        raise InputError(
            f"{flag}: a teacher needs {needs}, and no node of the Ray cluster has them (the most "
            f"on one of {len(room.nodes)} nodes: {room.gpus:g} GPUs, {room.cpus:g} processors). "
            "Use --gpus-per-teacher and --cpus-per-teacher that a node has (0 GPUs run on "
            "processors), or say with --teachers how many to wait for in a cluster that grows."
        )
    return needs


def job_of(task: Task, sample: Sample, needs: Needs) -> Job:
    """Put together what every teacher is told."""
    settings = task.settings
    if not needs.gpus and settings.device_map is None and settings.engine == TRANSFORMERS:
        settings = replace(settings, device="cpu")  # a node may have GPUs that it was not given
    settings = replace(
        settings,
        boundaries_of=_whole(settings.boundaries_of),
        chat_template_path=_whole(settings.chat_template_path),
    )
    teacher = _whole(str(task.provenance["teacher"]))
    return Job(
        teacher=teacher,
        settings=settings,
        spec=task.spec,
        plan=task.plan,
        provenance=task.provenance,
        sample=sample,
        part=Part.of(task.rows, trial_rows(task, sample)),
        threads=torch.get_num_threads(),
        gpus=needs.gpus,
    )


def trial_rows(task: Task, sample: Sample) -> I64:
    """List the rows that a teacher is tried with: those of the sample, and the longest."""
    rows = {s.line.row for s in sample.sequences} | set(longest_rows(task).tolist())
    return np.array(sorted(rows), np.int64)


def longest_rows(task: Task) -> I64:
    """List the rows that the size of a batch is measured with, if it is."""
    return task.sizes.longest if task.wants_budget else np.empty(0, np.int64)


def _whole(path: str | None) -> Any:
    """Write a path that is there as one that holds in any folder; leave ids and URLs."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path
