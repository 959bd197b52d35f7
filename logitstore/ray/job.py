"""The entry to a capture on a Ray cluster; that of one process is `logitstore.capture.job`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from logitstore.capture.job import writer_of
from logitstore.capture.process import CaptureProcess
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.sharing.sharing import ByRank
from logitstore.capture.task import prepare
from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import Ranks, find_ranks
from logitstore.console.signals import stopper
from logitstore.ray.cluster import Room, connected
from logitstore.ray.driver import RayHands, needs_of
from logitstore.ray.settings import RaySettings
from logitstore.storage.paths import StorePath
from logitstore.store import LogitStore
from logitstore.writing.places import try_place

if TYPE_CHECKING:
    from logitstore.rows.sources import DatasetArg


def run_on_ray(
    teacher: str | os.PathLike[str],
    dataset: "DatasetArg",
    out: str | os.PathLike[str] | StorePath,
    settings: CaptureSettings,
    on_ray: RaySettings,
    *,
    log_json: str | os.PathLike[str] | None = None,
) -> LogitStore:
    """Run a teacher on a cluster and write a store; see `logitstore.ray.capture`."""
    on_ray.check(settings, find_ranks())
    assert on_ray.address is not None
    # Connected first: Ray takes SIGTERM for itself then, and we after it.
    with connected(on_ray.address) as named, stopper() as signals:
        needs = needs_of(settings, on_ray, Room.now(), named)
        place = try_place(out)
        task = prepare(os.fspath(teacher), dataset, settings)
        events = JsonLog(Path(log_json) if log_json is not None else None)
        hands = RayHands(task, place, on_ray, needs, signals, events)
        # A driver shares with nobody: it is the only process that captures, whoever does it.
        sharing = ByRank(place, task.plan.shard_count, Ranks())
        try:
            return CaptureProcess(task, place, writer_of(task, place), sharing, hands, events).run()
        finally:
            hands.close()
