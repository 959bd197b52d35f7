"""The entry to a capture: run the teacher over a dataset, or estimate what that would do.

`run_capture` prepares a task (`task.py`: teacher, rows, plan of shards), chooses how processes
share it (`process.py`), and each of them runs the teacher and writes shards (`shard_worker.py`).

A capture can always be resumed: the content of each shard is fixed before the first is written, a
shard is either committed whole or absent, and a run writes the shards that are missing.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore.capture.boundaries.cost import check_asked
from logitstore.capture.estimate.budget import find_budget
from logitstore.capture.estimate.forecast import Forecast
from logitstore.capture.estimate.sample import Sample, take_sample
from logitstore.capture.estimate.trial_batches import forecast_capture
from logitstore.capture.in_process import InThisProcess
from logitstore.capture.passes.choose import load_engine
from logitstore.capture.passes.engine import Engine
from logitstore.capture.process import CaptureProcess
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.sharing.sharing import ByClaim, ByRank, Sharing
from logitstore.capture.task import Task, prepare
from logitstore.capture.writer import CaptureWriter, boundaries_path, boundaries_writer
from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import Ranks, find_ranks
from logitstore.console.signals import stopper
from logitstore.format.spec import SPEC_FILE
from logitstore.storage.paths import StorePath
from logitstore.store import LogitStore
from logitstore.writing.places import try_place
from logitstore.writing.writer import StoreWriter

if TYPE_CHECKING:
    from logitstore.rows.sources import DatasetArg


def run_capture(
    teacher: str | os.PathLike[str],
    dataset: "DatasetArg",
    out: str | os.PathLike[str] | StorePath,
    settings: CaptureSettings,
    *,
    log_json: str | os.PathLike[str] | None = None,
    ranks: Ranks | None = None,
) -> LogitStore:
    """Run the teacher over a dataset and write a store; see `logitstore.capture`."""
    with stopper() as signals:
        ranks = find_ranks() if ranks is None else ranks
        place = try_place(out)
        task = prepare(os.fspath(teacher), dataset, settings)
        events = JsonLog(Path(log_json) if log_json is not None and ranks.is_first else None)
        sharing = _sharing(task, place, ranks)
        hands = InThisProcess(task, ranks, sharing, signals, events)
        return CaptureProcess(task, place, writer_of(task, place), sharing, hands, events).run()


def run_preview(
    teacher: str | os.PathLike[str],
    dataset: "DatasetArg",
    out: str | os.PathLike[str] | StorePath | None,
    settings: CaptureSettings,
) -> Forecast:
    """Estimate what `run_capture` would do; see `logitstore.capture.preview`."""
    place = None if out is None else try_place(out, dry_run=True)
    task = prepare(os.fspath(teacher), dataset, settings)
    missing = own_missing = list(range(task.plan.shard_count))
    budget: int | None = None
    if place is not None and (place / SPEC_FILE).exists():  # a writer would otherwise begin a store
        begun = _begun(task, place)
        missing, own_missing = begun.missing(), begun.own.missing()
        budget = task.budget(begun.provenance)
    sample = take_sample(task.reader, task.sizes)
    if task.student is not None:
        check_asked(task.student, sample.sequences)
    if not missing or not (sample.records or task.settings.generate):
        return Forecast.before_teacher(task, sample, missing, own_missing)
    engine = load_engine(task, Ranks())
    try:
        return _asked(task, engine, sample, missing, own_missing, budget)
    finally:
        engine.close()


def _asked(
    task: Task,
    engine: Engine,
    sample: Sample,
    missing: list[int],
    own_missing: list[int],
    budget: int | None,
) -> Forecast:
    """Forecast with the teacher's answers about some rows."""
    if budget is None and task.wants_budget:
        budget = find_budget(task, engine, sample)
    budget = budget or int(task.provenance["tokens_per_batch"])
    return forecast_capture(task, engine, sample, missing, budget, own_missing=own_missing)


def _begun(task: Task, out: StorePath) -> CaptureWriter:
    """Open what there is of a store; one at a student's boundaries is not begun for a preview."""
    files = task.teacher.tokenizer_files
    own = StoreWriter(out, task.spec, task.plan, files, task.provenance)
    if task.student is None:
        return CaptureWriter(own)
    if not (boundaries_path(own, task.student) / SPEC_FILE).exists():
        return CaptureWriter(own, lacks_boundaries=True)
    return CaptureWriter(own, boundaries_writer(own, task.student, files))


def _sharing(task: Task, out: StorePath, ranks: Ranks) -> Sharing:
    return ByClaim(out) if task.settings.claim else ByRank(out, task.plan.shard_count, ranks)


def writer_of(task: Task, out: StorePath) -> Callable[[Mapping[str, Any]], CaptureWriter]:
    """Return what makes a writer, which begins the store, or stores, if they do not exist.

    It takes what a new store records of its making besides what the task says.
    """

    def make(measured: Mapping[str, Any]) -> CaptureWriter:
        files = task.teacher.tokenizer_files
        own = StoreWriter(out, task.spec, task.plan, files, {**task.provenance, **measured})
        if task.student is None:
            return CaptureWriter(own)
        return CaptureWriter(own, boundaries_writer(own, task.student, files))

    return make
