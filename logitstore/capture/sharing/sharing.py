"""How the processes of a capture share its shards: by rank, or by claims.

Ranks are the processes of one launcher. All are there from the beginning, and shard i belongs to
one of them, whatever becomes of it. A process alone is the only rank.

Claims are for processes that come and go. Each takes the next shard that nobody has; all return
when nothing is missing, and one of them seals. See `logitstore.capture.sharing.claims` for what a
claim is worth.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from logitstore.capture.sharing.claims import CLAIM_EXPIRES_S, Claims, alone, among_others
from logitstore.capture.sharing.heartbeat import (
    PATIENCE_S,
    Heartbeat,
    Pulse,
    signs_of_life,
    wait_until,
)
from logitstore.console.launcher import Ranks
from logitstore.console.progress import duration
from logitstore.errors import IncompleteStoreError, InputError
from logitstore.format.spec import DONE_FILE, SHARDS_FOLDER, SPEC_FILE, shard_name
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath, names_in_or_none
from logitstore.writing.writer import StoreWriter

log = logging.getLogger(__name__)

AGAIN = "Run the same command again: it does only what is missing."
_SEAL = "seal"
#: How often to look whether something became free, or was done by another; in a bucket every look
#: is a request that costs.
POLL_S = 0.5
_POLL_RANKS_S, _POLL_BUCKET_S = 0.2, 2.0


class Sharing(Protocol):
    """What a process does of a capture.

    Attributes:
        may_begin: Whether it may begin the store.
    """

    may_begin: bool

    def wait_for_begin(self) -> None:
        """Wait until another process has begun the store."""

    def at_work(self) -> AbstractContextManager[None]:
        """Be at work on the store; refuses if another capture is that does not share it."""

    def missing(self, writer: StoreWriter) -> list[int]:
        """Shards that may fall to this process."""

    def shards(self, writer: StoreWriter) -> Iterator[int | None]:
        """The shards to do, one by one. None: there is none now, but may be later."""

    def done_by_others(self) -> list[int]:
        """Of `missing`, those that others have committed since this was last asked."""

    def beat(self) -> None:
        """Work goes on. Cheap; any thread may say so."""

    def done(self, index: int) -> None:
        """A shard is committed, or has failed to be."""

    def finish(self, writer: StoreWriter) -> None:
        """This process's work is done: return when the store is sealed."""

    def stop(self) -> None:
        """Take away what said that it was at work."""


class ByRank:
    """A rank of a launcher, or a process alone."""

    def __init__(self, out: StorePath, shard_count: int, ranks: Ranks) -> None:
        self._out, self._count, self._ranks = out, shard_count, ranks
        self._heart = Heartbeat(out / SHARDS_FOLDER, ranks)
        self.may_begin = ranks.is_first

    def wait_for_begin(self) -> None:
        is_begun = (self._out / SPEC_FILE).exists
        self._wait(is_begun, "to begin the store; is --out a folder that all ranks share?")

    def at_work(self) -> AbstractContextManager[None]:
        if isinstance(self._out, RemotePath) or not self._ranks.is_first:
            return nullcontext()  # a bucket has no file that says whether its maker lives
        return alone(self._out / SHARDS_FOLDER)

    def missing(self, writer: StoreWriter) -> list[int]:
        return self._ranks.own(writer.missing())

    def shards(self, writer: StoreWriter) -> Iterator[int | None]:
        yield from self.missing(writer)

    def done_by_others(self) -> list[int]:
        return []

    def beat(self) -> None:
        self._heart.beat()

    def done(self, index: int) -> None:
        pass

    def finish(self, writer: StoreWriter) -> None:
        if not self._ranks.is_first:
            self._wait((self._out / DONE_FILE).exists, "for rank 0 to seal the store")
            return
        if self._ranks.size > 1:
            log.info("%s: done; waiting for the shards of the others.", self._ranks)
            self._wait(lambda: not writer.missing(), "for their shards")
        writer.seal()

    def stop(self) -> None:
        self._heart.stop()

    def _wait(self, is_done: Callable[[], bool], for_what: str) -> None:
        shards = self._out / SHARDS_FOLDER
        poll_s = _POLL_BUCKET_S if isinstance(self._out, RemotePath) else _POLL_RANKS_S
        if not wait_until(
            is_done, lambda: signs_of_life(shards), patience_s=PATIENCE_S, poll_s=poll_s
        ):
            raise IncompleteStoreError(
                f"{self._out}: {self._ranks} waited {for_what}, and for {duration(PATIENCE_S)} no "
                f"other rank gave a sign of life. {state(self._out, self._count)}. See what the "
                f"other ranks said. {AGAIN}"
            )


class ByClaim:
    """One of any number of workers that come and go.

    Raises:
        InputError: The store is in a bucket, where claims cannot be told to be alive.
    """

    may_begin = True

    def __init__(self, out: StorePath) -> None:
        if not isinstance(out, Path):
            raise InputError(
                f"{out}: --claim works in a folder that all workers see, and this is a bucket. "
                "Share the work by ranks (torchrun, accelerate launch or srun), or capture to a "
                "folder and copy it."
            )
        self._shards_folder = out / SHARDS_FOLDER
        self._claims = Claims(self._shards_folder, CLAIM_EXPIRES_S)
        self._pulse = Pulse(self._claims.touch)
        self._own: set[int] = set()
        self._unknown: set[int] = set()
        self._news: list[int] = []

    def wait_for_begin(self) -> None:
        raise AssertionError("a worker begins the store itself")

    def at_work(self) -> AbstractContextManager[None]:
        return among_others(self._shards_folder)

    def missing(self, writer: StoreWriter) -> list[int]:
        return writer.missing()

    def shards(self, writer: StoreWriter) -> Iterator[int | None]:
        self._unknown = set(writer.missing())
        while missing := writer.missing():
            self._take_note(missing)
            taken = self._claims.take([f"{index:05d}" for index in missing])
            index = None if taken is None else int(taken)
            if index is not None and (self._shards_folder / shard_name(index)).exists():
                self._claims.give_back(f"{index:05d}")  # done between the look and the claim
                continue
            if index is not None:
                self._own.add(index)
            yield index
        self._take_note([])

    def done_by_others(self) -> list[int]:
        found, self._news = self._news, []
        return found

    def beat(self) -> None:
        self._pulse.beat()

    def done(self, index: int) -> None:
        self._claims.give_back(f"{index:05d}")

    def finish(self, writer: StoreWriter) -> None:
        while not writer.is_sealed:
            if self._claims.take([_SEAL]) is not None:
                writer.seal()
                return
            time.sleep(POLL_S)

    def stop(self) -> None:
        self._claims.give_all_back()

    def _take_note(self, missing: list[int]) -> None:
        """What is missing no more, and was not done here, was done by others."""
        there = self._unknown - set(missing)
        self._unknown -= there
        self._news += sorted(there - self._own)


def state(out: StorePath, shard_count: int) -> str:
    """How much of a store is there, as a clause."""
    there = set(names_in_or_none(out / SHARDS_FOLDER))
    held = sum(shard_name(i) in there for i in range(shard_count))
    return f"{out}: {held:,} of {shard_count:,} shards are there, each of them whole"
