"""Say which turns of conversations a capture cannot use as they should be, and what to do."""

import logging
from collections import Counter
from collections.abc import Mapping

from logitstore.capture.sequences.row_reader import ENDLESS
from logitstore.capture.task import Task
from logitstore.capture.writer import CaptureWriter
from logitstore.rows.renderer import UNWRITTEN

log = logging.getLogger(__name__)

_SAID = {
    ENDLESS: (
        "the chat template writes no token that ends them, so no student learns from them when to "
        "stop. Give a template that ends every turn with --chat-template-path."
    ),
    UNWRITTEN: (
        "they call tools, and the chat template does not write the calls, so they are left out: a "
        "student would learn to say nothing and stop. Give a template that writes tool calls with "
        "--chat-template-path."
    ),
}


class OddTurns:
    """Counts turns without an end, or without their tool calls: each shard's go to the journal.

    Args:
        task: The capture.
        writer: Has the journal.
    """

    def __init__(self, task: Task, writer: CaptureWriter) -> None:
        self._name, self._writer = task.rows.name, writer
        self._first: dict[str, int] = {}
        self._in_all: Counter[str] = Counter()

    def say(self, shard: int, turns: Mapping[str, int]) -> None:
        """Note a shard's turns by kind; warn of the first of each kind."""
        counts = {kind: count for kind, count in turns.items() if count}
        if not counts:
            return
        self._writer.note("turns", shard=shard, **counts)
        self.warn(shard, counts)

    def warn(self, shard: int, counts: Mapping[str, int]) -> None:
        """Count a shard's turns, those that there are; warn of the first of each kind."""
        self._in_all.update(counts)
        for kind in counts.keys() - self._first.keys():
            self._first[kind] = counts[kind]
            log.warning(
                "%s: %d turns of shard %d are odd: %s", self._name, counts[kind], shard, _SAID[kind]
            )

    def say_in_all(self) -> None:
        """Warn at the end of all such turns, where there were more than in the first shard."""
        for kind, count in self._in_all.items():
            if count > self._first[kind]:
                log.warning("%s: %d turns in all are odd: %s", self._name, count, _SAID[kind])
