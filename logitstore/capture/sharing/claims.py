"""Claims: which of several processes that come and go captures which shard of a store.

    shards/.tmp-claim-00005    this shard is being captured
    shards/.tmp-claim-seal     the store is being sealed
    shards/.tmp-alone          a capture that shares with nobody (of a launcher's ranks: rank 0)
    shards/.tmp-worker-1f2e…   a worker that takes shards by claims

Each is a heartbeat: created exclusively, it names its process, is touched while the work goes on,
and counts for nothing once its process is gone (see `heartbeat.py`). The seal removes them all.

Claims are advice, so that no work is done twice. That no work is lost or mixed up is up to the
commit, which lets one of several twins win whatever claims say: a shard whose worker died is taken
by another; a worker that was only slow finds its shard there, and drops its own.
"""

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from logitstore.capture.sharing.heartbeat import (
    Heartbeat,
    SeenHeartbeat,
    file_system_time_ns,
    read_heartbeat,
)
from logitstore.errors import BusyError
from logitstore.storage import commit

log = logging.getLogger(__name__)

#: A claim without a beat for this long is free. A worker touches its claims between batches, so
#: this is longer than any batch takes, and than network file systems cache a file's time.
CLAIM_EXPIRES_S = 300.0
#: The same of a whole process, which beats from a thread of its own whatever it is busy with.
PROCESS_EXPIRES_S = 60.0
_CLAIM, _ALONE, _WORKER = ".tmp-claim-", ".tmp-alone", ".tmp-worker-"


class Claims:
    """Takes and holds the claims of one worker.

    Args:
        folder: The store's shards.
        expires_s: Age from which another worker's claim is free.
    """

    def __init__(self, folder: Path, expires_s: float = CLAIM_EXPIRES_S) -> None:
        self._folder, self._expires_s = folder, expires_s
        self._held: dict[str, Heartbeat] = {}

    def take(self, names: Sequence[str]) -> str | None:
        """Claim the first name that nobody has claimed, else the first whose claim is stale.

        Returns:
            The name, which is this worker's now; None if every name is taken.

        Raises:
            StorageError: The file system rejected it.
        """
        now_ns = cache(lambda: file_system_time_ns(self._folder))
        try:
            present = set(os.listdir(self._folder))
            order = sorted(names, key=lambda name: f"{_CLAIM}{name}" in present)
            not_held = (name for name in order if name not in self._held)
            return next((name for name in not_held if self._take(name, now_ns)), None)
        except OSError as e:
            raise commit.explain(e, self._folder) from e

    def take_free(self, name: str) -> bool:
        """Claim a name that nobody has claimed, not even a worker that is gone; one look.

        Returns:
            Whether it is this worker's now.

        Raises:
            StorageError: The file system rejected it.
        """
        try:
            heartbeat = Heartbeat.create(self._folder / f"{_CLAIM}{name}")
        except OSError as e:
            raise commit.explain(e, self._folder) from e
        if heartbeat is not None:
            self._held[name] = heartbeat
        return heartbeat is not None

    def beat(self) -> None:
        """Refresh every claim that is held."""
        for heartbeat in list(self._held.values()):  # another thread may release one meanwhile
            heartbeat.beat()

    def release(self, name: str) -> None:
        """Drop a claim: its work is done, or left to others."""
        if (heartbeat := self._held.pop(name, None)) is not None:
            heartbeat.stop()

    def release_all(self) -> None:
        """Drop every claim, at the end of this worker."""
        for name in list(self._held):
            self.release(name)

    def _take(self, name: str, now_ns: Callable[[], int]) -> bool:
        path = self._folder / f"{_CLAIM}{name}"
        heartbeat = Heartbeat.create(path)
        if heartbeat is None and self._remove_stale(path, now_ns):
            heartbeat = Heartbeat.create(path)
        if heartbeat is not None:
            self._held[name] = heartbeat
        return heartbeat is not None

    def _remove_stale(self, path: Path, now_ns: Callable[[], int]) -> bool:
        """Remove another worker's claim if it is stale; True if none is left."""
        seen = read_heartbeat(path, now_ns)
        if seen is None:
            return True
        if not seen.is_stale(self._expires_s) or not seen.remove():
            return False
        log.info("%s: left behind by %s; now it is taken over.", path.name, seen.process or "?")
        return True


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a store as its only capture.

    Args:
        folder: The store's shards.

    Raises:
        BusyError: Another capture is at work here.
    """
    with _process_heartbeat(folder / _ALONE):
        for path in sorted(folder.glob(f"{_WORKER}*")):
            if (seen := _living(path)) is not None:
                raise BusyError(_busy(folder, seen, "with --claim", "Add --claim here, too"))
        yield


def sign_of_alone(folder: Path) -> bytes | None:
    """Read what the only capture of a store has written there; None if there is none.

    No two captures write the same, so whoever finds it sees the same folder.
    """
    try:
        return (folder / _ALONE).read_bytes()
    except OSError:
        return None


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Hold a store as one of the workers that share it by claims.

    Args:
        folder: The store's shards.

    Raises:
        BusyError: A capture that does not share is at work here.
    """
    with _process_heartbeat(folder / f"{_WORKER}{os.getpid()}-{secrets.token_hex(4)}"):
        if (seen := _living(folder / _ALONE)) is not None:
            raise BusyError(_busy(folder, seen, "without --claim", "Start it with --claim, too"))
        yield


@contextmanager
def _process_heartbeat(path: Path) -> Iterator[None]:
    """Keep a heartbeat of this process while the block runs; replace a dead one of that name."""
    try:
        while (heartbeat := Heartbeat.create(path)) is None:
            if (seen := _living(path)) is not None:
                raise BusyError(_busy(path.parent, seen, "already", "Start all with --claim"))
    except OSError as e:
        raise commit.explain(e, path) from e
    with heartbeat.in_background():
        yield


def _living(path: Path) -> SeenHeartbeat | None:
    """Read a heartbeat; a dead one is removed, and counts as none."""
    seen = read_heartbeat(path, lambda: file_system_time_ns(path.parent))
    if seen is not None and seen.is_dead(PROCESS_EXPIRES_S):
        seen.remove()
        return None
    return seen


def _busy(folder: Path, seen: SeenHeartbeat, how: str, step: str) -> str:
    who = seen.process or "of which nothing is known"
    return (
        f"{folder.parent}: a capture is at work here {how} ({who}, last heartbeat "
        f"{seen.age_s:.0f} s ago). Two that do not share do everything twice. {step}, or wait "
        f"until it has ended; one that was killed on another machine is forgotten after "
        f"{PROCESS_EXPIRES_S:.0f} s."
    )
