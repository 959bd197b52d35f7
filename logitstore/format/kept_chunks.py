"""Keep decoded chunks for the next read, together within a bound, whatever keeps them.

A chunk is decoded whole, however few of its rows are asked for, so each array keeps the last. Of a
few kilobytes on disk that can be many megabytes, and 64 shards are open, so the bound is of all
arrays of a process together: the chunk that was decoded longest ago goes first.
"""

import os
import threading
from collections import OrderedDict
from typing import Protocol
from weakref import ref

#: Of the usual chunks, those of a hundred shards.
LIMIT_BYTES = 64 * 1024 * 1024


class Keeper(Protocol):
    """What keeps a chunk, and can be told to drop it."""

    def drop(self) -> None: ...


class KeptChunks:
    """Counts what keepers keep, and makes the oldest drop theirs beyond a limit."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[int, tuple[ref[Keeper], int]] = OrderedDict()
        self._total = 0

    def note(self, keeper: Keeper, size: int) -> None:
        """Count what a keeper keeps now, in place of what it kept before; others may drop theirs.

        The one that is noted stays, whatever its size.
        """
        with self._lock:
            self._forget(id(keeper))
            self._sizes[id(keeper)] = (ref(keeper), size)
            self._total += size
            while self._total > self.limit_bytes and len(self._sizes) > 1:
                oldest = self._forget(next(iter(self._sizes)))
                if oldest is not None:
                    oldest.drop()

    def renew_lock(self) -> None:
        """Make the lock free in a process that was forked while another thread held it."""
        self._lock = threading.Lock()

    def _forget(self, key: int) -> Keeper | None:
        """Stop counting a keeper, which may be gone, and its place taken by another."""
        known, size = self._sizes.pop(key, (None, 0))
        self._total -= size
        return None if known is None else known()


#: Those of this process, of all stores that it has open.
KEPT = KeptChunks()
os.register_at_fork(after_in_child=lambda: KEPT.renew_lock())
