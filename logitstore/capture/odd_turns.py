"""Say which turns of conversations a capture cannot use as they should be, and what to do."""

import logging
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
        self._warned: set[str] = set()

    def say(self, shard: int, turns: Mapping[str, int]) -> None:
        """Note a shard's turns by kind; warn of the first of each kind."""
        counts = {kind: count for kind, count in turns.items() if count}
        if not counts:
            return
        self._writer.note("turns", shard=shard, **counts)
        for kind in counts.keys() - self._warned:
            self._warned.add(kind)
            log.warning(
                "%s: %d turns of shard %d are odd: %s", self._name, counts[kind], shard, _SAID[kind]
            )
