"""Divide the shards of a capture among its processes: by rank, or by claims.

*Ranks* are the processes of one launcher (see `logitstore.console.launcher`), fixed when they
start. The file system, or the bucket, is all that they share:

* Shard i belongs to rank i modulo the number of ranks, so no rank needs to know what another does.
* Rank 0 begins the store; the others wait for `store.json`.
* Rank 0 seals the store when all shards are there; the others wait for the seal, so that every
  process returns with a finished store.
* A rank at work has a heartbeat in the store. A rank that waits gives up when nothing has moved
  for half an hour: no new shard, no heartbeat.

A process started without a launcher is the only rank.

*Claims* (`--claim`) are for processes that come and go. Each takes the next shard that nobody has;
all return when nothing is missing, and one of them seals. See `claims.py`.

On a *Ray* cluster one process captures, as far as a store can tell: a driver, the only rank, which
hands shards to teachers elsewhere (`logitstore.ray`). What it holds is held for all of them.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from logitstore.capture.sharing.claims import CLAIM_EXPIRES_S, Claims, exclusive, shared
from logitstore.capture.sharing.heartbeat import (
    PATIENCE_S,
    RANK_PREFIX,
    Heartbeat,
    activity,
    wait_until,
)
from logitstore.capture.writer import CaptureWriter
from logitstore.console.counts import counted
from logitstore.console.launcher import Ranks
from logitstore.console.progress import duration
from logitstore.errors import IncompleteStoreError, InputError
from logitstore.format.spec import SHARDS_FOLDER, SPEC_FILE, shard_name
from logitstore.storage.paths import StorePath, names_in_or_none

log = logging.getLogger(__name__)

AGAIN = "Run the same command again: it does only what is missing."
_SEAL = "seal"
#: Seconds between two looks whether a shard became free or was committed by another. In a bucket
#: every look is a request that costs.
POLL_S = 0.5
_POLL_RANKS_S, _POLL_REMOTE_S = 0.2, 2.0


class Sharing(Protocol):
    """Decides which shards of a capture this process does, and when it may begin and seal.

    Attributes:
        may_begin: Whether it may begin the store.
    """

    may_begin: bool

    def wait_for_begin(self) -> None:
        """Wait until another process has begun the store."""

    def at_work(self) -> AbstractContextManager[None]:
        """Hold the store; raises BusyError if a capture that does not share it holds it."""

    def missing(self, writer: CaptureWriter) -> list[int]:
        """List the missing shards that may fall to this process."""

    def shards(self, writer: CaptureWriter) -> Iterator[int | None]:
        """Yield the shards to do, one by one; None when none is free now but may be later."""

    def done_by_others(self) -> list[int]:
        """List those of `missing` that others have committed since the last call."""

    def beat(self) -> None:
        """Beat this process's heartbeat. Cheap, and safe from any thread."""

    def done(self, index: int) -> None:
        """Let go of a shard that is committed, or that failed to be."""

    def finish(self, writer: CaptureWriter) -> None:
        """Seal the store or wait for its seal, after this process's last shard."""

    def stop(self) -> None:
        """Remove this process's heartbeats."""


class ByRank:
    """Shares as a rank of a launcher; a process alone is the only rank."""

    def __init__(self, out: StorePath, shard_count: int, ranks: Ranks) -> None:
        self._out, self._count, self._ranks = out, shard_count, ranks
        self._heartbeat: Heartbeat | None = None
        self.may_begin = ranks.is_first

    def wait_for_begin(self) -> None:
        is_begun = (self._out / SPEC_FILE).exists
        self._wait(is_begun, "to begin the store; is --out a folder that all ranks share?")

    def at_work(self) -> AbstractContextManager[None]:
        folder = folder_of_claims(self._out)
        if folder is None or not self._ranks.is_first:
            return nullcontext()
        return exclusive(folder)

    def missing(self, writer: CaptureWriter) -> list[int]:
        return self._ranks.own(writer.missing())

    def shards(self, writer: CaptureWriter) -> Iterator[int | None]:
        yield from self.missing(writer)

    def done_by_others(self) -> list[int]:
        return []

    def beat(self) -> None:
        if self._ranks.size == 1:
            return  # nobody waits for this process
        if self._heartbeat is None:  # not before: the shards' folder has to be there
            path = self._out / SHARDS_FOLDER / f"{RANK_PREFIX}{self._ranks.rank:05d}"
            self._heartbeat = Heartbeat.start(path)
        self._heartbeat.beat()

    def done(self, index: int) -> None:
        pass

    def finish(self, writer: CaptureWriter) -> None:
        if not self._ranks.is_first:
            self._wait(lambda: writer.is_sealed, "for rank 0 to seal the store")
            return
        if self._ranks.size > 1:
            log.info("%s: done; waiting for the shards of the others.", self._ranks)
            self._wait(_Missing(writer).are_none_left, "for their shards")
        writer.seal()

    def stop(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def _wait(self, is_done: Callable[[], bool], for_what: str) -> None:
        shards = self._out / SHARDS_FOLDER
        poll_s = _POLL_REMOTE_S if self._out.is_remote else _POLL_RANKS_S
        if not wait_until(is_done, lambda: activity(shards), patience_s=PATIENCE_S, poll_s=poll_s):
            raise IncompleteStoreError(
                f"{self._out}: {self._ranks} waited {for_what}, and for {duration(PATIENCE_S)} no "
                f"other rank gave a heartbeat. {shards_present(self._out, self._count)}. See what "
                f"the other ranks printed. {AGAIN}"
            )


class _Missing:
    """The shards that a store lacked at the last look at all of them."""

    def __init__(self, writer: CaptureWriter) -> None:
        self._writer, self._indices = writer, writer.missing()

    def are_none_left(self) -> bool:
        """Tell whether all are there by now; mostly that takes a look at one."""
        while self._indices and self._writer.has_shard(self._indices[-1]):
            self._indices.pop()
        if not self._indices:  # sure, once all are listed again
            self._indices = self._writer.missing()
        return not self._indices


class ByClaim:
    """Shares as one of any number of workers that come and go.

    Raises:
        InputError: The store is in a bucket, where claims cannot be told to be alive.
    """

    may_begin = True

    def __init__(self, out: StorePath) -> None:
        folder = folder_of_claims(out)
        if folder is None:
            raise InputError(
                f"{out}: --claim works in a folder that all workers see, and this is a bucket. "
                "Share the work by ranks (torchrun, accelerate launch or srun), or capture to a "
                "folder and copy it."
            )
        self._shards_folder = folder
        self._claims = Claims(self._shards_folder, CLAIM_EXPIRES_S)
        self._claimed_here: set[int] = set()
        self._done: set[int] = set()
        self._newly_done: list[int] = []

    def wait_for_begin(self) -> None:
        raise AssertionError("a worker begins the store itself")

    def at_work(self) -> AbstractContextManager[None]:
        return shared(self._shards_folder)

    def missing(self, writer: CaptureWriter) -> list[int]:
        return writer.missing()

    def shards(self, writer: CaptureWriter) -> Iterator[int | None]:
        """Go through the missing shards once, then wait for those that others have claimed.

        All shards are listed once for each such round, and not at each look: a worker that takes
        the next of a million costs the file system a few requests.
        """
        while missing := writer.missing():
            claimed = []
            for index in missing:
                if self._take(index, writer):
                    yield index
                elif not self._is_done(index, writer):
                    claimed.append(index)
            while claimed := [i for i in claimed if not self._is_done(i, writer)]:
                name = self._claims.take([f"{index:05d}" for index in claimed])
                if name is None:
                    yield None
                elif self._is_done(int(name), writer):
                    self._claims.release(name)  # committed since
                else:
                    self._claimed_here.add(int(name))
                    yield int(name)

    def done_by_others(self) -> list[int]:
        newly_done, self._newly_done = self._newly_done, []
        return newly_done

    def beat(self) -> None:
        self._claims.beat()

    def done(self, index: int) -> None:
        self._claims.release(f"{index:05d}")

    def finish(self, writer: CaptureWriter) -> None:
        while not writer.is_sealed:
            if self._claims.take([_SEAL]) is not None:
                writer.seal()
                return
            time.sleep(POLL_S)

    def stop(self) -> None:
        self._claims.release_all()

    def _take(self, index: int, writer: CaptureWriter) -> bool:
        """Claim a shard if nobody has it and it is not there."""
        if self._is_done(index, writer) or not self._claims.take_free(f"{index:05d}"):
            return False
        if self._is_done(index, writer):  # committed between the look and the claim
            self._claims.release(f"{index:05d}")
            return False
        self._claimed_here.add(index)
        return True

    def _is_done(self, index: int, writer: CaptureWriter) -> bool:
        """Tell whether a shard is committed; note it if another process did it."""
        if index in self._done:
            return True
        if not writer.has_shard(index):
            return False
        self._done.add(index)
        if index not in self._claimed_here:
            self._newly_done.append(index)
        return True


def folder_of_claims(out: StorePath) -> Path | None:
    """Find the folder where processes claim what they work on; there is none in a bucket.

    An object says neither whether its maker still lives nor, by a clock that all share, when it was
    last written, so what rests on that needs files.
    """
    return out / SHARDS_FOLDER if isinstance(out, Path) else None


def shards_present(out: StorePath, shard_count: int) -> str:
    """Say how many shards of a store are there, as a clause of a message."""
    names = set(names_in_or_none(out / SHARDS_FOLDER))
    held = sum(shard_name(i) in names for i in range(shard_count))
    return f"{out}: {held:,} of {counted(shard_count, 'shard')} there, each of them whole"
