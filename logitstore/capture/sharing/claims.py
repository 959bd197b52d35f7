"""Who captures what, of processes that come and go: claims on shards, and on a store as a whole.

    shards/.tmp-claim-00005    this shard is being worked on
    shards/.tmp-claim-seal     the seal is being made
    shards/.tmp-alone          a capture that shares with nobody (a launcher's ranks: their first)
    shards/.tmp-worker-1f2e…   a worker that takes shards by claims

Each is made exclusively, says who made it, is touched while the work goes on, and counts for
nothing once who made it is gone (see `alive.py`). The seal removes them all.

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

from logitstore.capture.sharing.alive import Beating, Seen, SignOfLife, clock_ns, look_at
from logitstore.errors import BusyError
from logitstore.storage import commit

log = logging.getLogger(__name__)

#: A claim that was not touched for so long is free. A worker touches its own between batches, so
#: this is longer than any batch takes, and than network file systems remember a time.
CLAIM_EXPIRES_S = 300.0
#: The same of a whole process, which touches its file whatever it is busy with.
PROCESS_EXPIRES_S = 60.0
_BEAT_EVERY_S = 10.0
_CLAIM, _ALONE, _WORKER = ".tmp-claim-", ".tmp-alone", ".tmp-worker-"


class Claims:
    """The claims of one worker.

    Args:
        folder: The shards'.
        expires_s: How old another's claim may be.
    """

    def __init__(self, folder: Path, expires_s: float = CLAIM_EXPIRES_S) -> None:
        self._folder, self._expires_s = folder, expires_s
        self._held: dict[str, SignOfLife] = {}

    def take(self, names: Sequence[str]) -> str | None:
        """One of the names that is free, which now is this worker's; None if none is.

        The first that nobody has claimed, else the first of which the claim counts no more.

        Raises:
            StorageError: The file system refused.
        """
        now_ns = cache(lambda: clock_ns(self._folder))
        try:
            there = set(os.listdir(self._folder))
            order = sorted(names, key=lambda name: f"{_CLAIM}{name}" in there)
            others = (name for name in order if name not in self._held)
            return next((name for name in others if self._take(name, now_ns)), None)
        except OSError as e:
            raise commit.explain(e, self._folder) from e

    def touch(self) -> None:
        """Work on all that is held goes on."""
        for sign in list(self._held.values()):  # another thread may give one back
            sign.refresh()

    def give_back(self, name: str) -> None:
        """It is done, or left to others."""
        if (sign := self._held.pop(name, None)) is not None:
            sign.end()

    def give_all_back(self) -> None:
        """This worker ends."""
        for name in list(self._held):
            self.give_back(name)

    def _take(self, name: str, now_ns: Callable[[], int]) -> bool:
        path = self._folder / f"{_CLAIM}{name}"
        sign = SignOfLife.make(path)
        if sign is None and self._is_free(path, now_ns):
            sign = SignOfLife.make(path)
        if sign is not None:
            self._held[name] = sign
        return sign is not None

    def _is_free(self, path: Path, now_ns: Callable[[], int]) -> bool:
        """Whether a claim that was there is there no more."""
        seen = look_at(path, now_ns)
        if seen is None:
            return True
        if not seen.is_stale(self._expires_s) or not seen.remove():
            return False
        log.info("%s: left behind by %s; now it is taken over.", path.name, seen.process or "?")
        return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only capture of a store.

    Args:
        folder: The store's shards.

    Raises:
        BusyError: Another capture is at work here.
    """
    with _made(folder / _ALONE):
        for path in sorted(folder.glob(f"{_WORKER}*")):
            if (seen := _living(path)) is not None:
                raise BusyError(_busy(folder, seen, "with --claim", "Add --claim here, too"))
        yield


@contextmanager
def among_others(folder: Path) -> Iterator[None]:
    """Be one of the workers that share a store by claims.

    Args:
        folder: The store's shards.

    Raises:
        BusyError: A capture that does not share is at work here.
    """
    with _made(folder / f"{_WORKER}{os.getpid()}-{secrets.token_hex(4)}"):
        if (seen := _living(folder / _ALONE)) is not None:
            raise BusyError(_busy(folder, seen, "without --claim", "Start it with --claim, too"))
        yield


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """A sign of life for as long as it lasts. A dead one of that name gives way."""
    try:
        while (sign := SignOfLife.make(path)) is None:
            if (seen := _living(path)) is not None:
                raise BusyError(_busy(path.parent, seen, "already", "Start all with --claim"))
    except OSError as e:
        raise commit.explain(e, path) from e
    beating = Beating(sign, _BEAT_EVERY_S)
    try:
        yield
    finally:
        beating.end()


def _living(path: Path) -> Seen | None:
    """The sign of life at a path, if whoever made it lives; a dead one is taken away."""
    seen = look_at(path, lambda: clock_ns(path.parent))
    if seen is not None and seen.is_dead(PROCESS_EXPIRES_S):
        seen.remove()
        return None
    return seen


def _busy(folder: Path, seen: Seen, how: str, step: str) -> str:
    who = seen.process or "of which nothing is known"
    return (
        f"{folder.parent}: a capture is at work here {how} ({who}, last sign of life "
        f"{seen.age_s:.0f} s ago). Two that do not share do everything twice. {step}, or wait "
        f"until it has ended; one that was killed on another machine is forgotten after "
        f"{PROCESS_EXPIRES_S:.0f} s."
    )
