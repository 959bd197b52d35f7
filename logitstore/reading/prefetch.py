"""Fetch what will be needed next on background threads, so that readers wait less for it."""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

_WORKERS = 4


class Prefetcher:
    """A background caller of `fetch` for the items that were asked for last.

    Threads exit when there is nothing to do, so nothing has to be closed; they are daemons, so a
    program never waits for them at its end. A failure is ignored here: the reader that needs the
    item meets the same failure and reports it.

    Args:
        fetch: Fetches one item; called on several threads.
        workers: The number of threads at most.
    """

    def __init__(self, fetch: Callable[[int], object], workers: int = _WORKERS) -> None:
        self._fetch, self._workers = fetch, workers
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._busy: set[int] = set()

    def ask(self, items: Iterable[int]) -> None:
        """Begin to fetch items, in this order; earlier items that are not begun are dropped."""
        with self._lock:
            self._wanted = [i for i in dict.fromkeys(items) if i not in self._busy]
            for _ in range(min(len(self._wanted), self._workers - len(self._busy))):
                item = self._wanted.pop(0)
                self._busy.add(item)
                threading.Thread(target=self._work, args=(item,), daemon=True).start()

    def _work(self, item: int) -> None:
        while True:
            with suppress(Exception):
                self._fetch(item)
            with self._lock:
                self._busy.discard(item)
                if not self._wanted:
                    return
                item = self._wanted.pop(0)
                self._busy.add(item)
