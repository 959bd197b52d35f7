"""Which process of a launcher this is, and how to wait for the others.

The file system, or the bucket, is all that they share, and enough.

`torchrun` and `accelerate launch` set RANK, WORLD_SIZE and LOCAL_RANK; `srun` sets SLURM_PROCID,
SLURM_NTASKS and SLURM_LOCALID. (A batch script that `srun` did not start has SLURM_PROCID 0 and no
step: it is one process, whatever number of tasks was allocated.)

Who does what:

* Shard i belongs to rank i modulo the number of ranks, so no rank needs to know what another does.
* Rank 0 begins the store; the others wait for `store.json`.
* Rank 0 seals the store when all shards are there; the others wait for the seal, so that every
  process that captures returns with a finished store.
* Ranks are fixed when they start. Processes that come and go share a store by claims instead
  (`--claim`, see `claims.py`).
* While at work a rank touches a file of its own in the store. Who waits gives up when nothing has
  moved for half an hour: no new shard, no sign of life.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from logitstore.console.launcher import Ranks
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath

#: A wait ends when nothing has moved for so long. Loading a large teacher takes minutes.
PATIENCE_S = 1800.0
_BEAT_EVERY_S = 20.0
_ALIVE_PREFIX = ".tmp-alive-"  # readers ignore `.tmp-…`, and the seal removes it


class Pulse:
    """Does something from time to time, however often it is asked to: at most every 20 s."""

    def __init__(self, touch: Callable[[], object]) -> None:
        self._touch, self._next = touch, 0.0

    def beat(self) -> None:
        """Work goes on."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _BEAT_EVERY_S
            self._touch()


class Heartbeat:
    """A file that a rank touches while it works; nothing for one process alone."""

    def __init__(self, folder: StorePath, ranks: Ranks) -> None:
        self._path = folder / f"{_ALIVE_PREFIX}{ranks.rank:05d}" if ranks.size > 1 else None
        self._pulse = Pulse(self._touch)

    def beat(self) -> None:
        """Say that work goes on."""
        self._pulse.beat()

    def _touch(self) -> None:
        if isinstance(self._path, RemotePath):
            self._path.overwrite(f"{time.time()}\n".encode())
        elif self._path is not None:
            self._path.touch()

    def stop(self) -> None:
        """The work is done."""
        if isinstance(self._path, RemotePath):
            self._path.delete()
        elif self._path is not None:
            self._path.unlink(missing_ok=True)


def signs_of_life(folder: StorePath) -> dict[str, Any]:
    """Names in a folder that moves while ranks work; heartbeats with the time of the last beat."""
    if isinstance(folder, RemotePath):
        return dict(folder.signs())
    found = {}
    for entry in os.scandir(folder) if folder.is_dir() else ():
        try:
            is_beat = entry.name.startswith(_ALIVE_PREFIX)
            found[entry.name] = entry.stat().st_mtime_ns if is_beat else 0
        except FileNotFoundError:  # gone since it was listed: that, too, is a change
            continue
    return found


def wait_until(
    is_done: Callable[[], bool],
    signs: Callable[[], object],
    *,
    patience_s: float = PATIENCE_S,
    poll_s: float = 0.2,
) -> bool:
    """Wait for others.

    Args:
        is_done: What is waited for.
        signs: Anything that differs from one look to the next while others are at work.
        patience_s: How long the signs may stand still.
        poll_s: Seconds between two looks.

    Returns:
        Whether it is done; False when nothing moved for `patience_s`.
    """
    last, since = signs(), time.monotonic()
    while not is_done():
        if time.monotonic() - since >= patience_s:
            return False
        time.sleep(poll_s)
        if (now := signs()) != last:
            last, since = now, time.monotonic()
    return True
