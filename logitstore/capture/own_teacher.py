"""A teacher that this process loads: loaded once, tried before a store begins, and tried again.

Whoever captures has one: a process by itself (`in_process.py`), or each of the processes that a
driver hands shards to.
"""

import logging
from functools import cached_property
from typing import Any, NamedTuple

from logitstore.capture.estimate.budget import find_budget
from logitstore.capture.estimate.forecast import Forecast
from logitstore.capture.estimate.sample import Sample, take_sample
from logitstore.capture.estimate.trial_batches import forecast_if_cheap
from logitstore.capture.passes.check_places import check_places
from logitstore.capture.passes.choose import load_engine
from logitstore.capture.passes.engine import Engine
from logitstore.capture.passes.self_test import try_teacher
from logitstore.capture.task import Task
from logitstore.console.launcher import Ranks

log = logging.getLogger(__name__)


class Tried(NamedTuple):
    """What trying a teacher told.

    Attributes:
        measured: What the store has to record of it.
        forecast: What the capture will take; None where measuring that would cost too much.
    """

    measured: dict[str, Any]
    forecast: Forecast | None


class OwnTeacher:
    """Loads a teacher, and tries it.

    Args:
        task: The capture.
        ranks: Which process of how many this is.
    """

    def __init__(self, task: Task, ranks: Ranks) -> None:
        self.task, self._ranks = task, ranks
        self._has_tried = False

    @cached_property
    def engine(self) -> Engine:
        """Load the teacher, once."""
        return load_engine(self.task, self._ranks)

    def close(self) -> None:
        """Let go of the teacher, if it was loaded: an engine's processes end."""
        if "engine" in vars(self):
            self.engine.close()

    def try_it(self, sample: Sample) -> Tried:
        """Load the teacher, try it and read trial batches, before there is a store."""
        task, measured = self.task, dict[str, Any]()
        if task.wants_budget:
            measured["tokens_per_batch"] = find_budget(task, self.engine, sample)
        budget = int((task.provenance | measured)["tokens_per_batch"])
        measured |= self.self_test(budget, sample) | _odd_turns(sample)
        if self.engine.versions:
            measured["versions"] = task.provenance["versions"] | dict(self.engine.versions)
        return Tried(measured, forecast_if_cheap(task, self.engine, sample, budget))

    def self_test(self, budget: int, sample: Sample | None) -> dict[str, Any]:
        """Try once in this process, on its own device, whether text, tokens and answers fit.

        Args:
            budget: Padded tokens of a batch.
            sample: Some rows; None: they are taken here.

        Returns:
            What was found, for the store and the journal; nothing where it was not tried.
        """
        task = self.task
        if self._has_tried or not task.settings.self_test:
            return {}
        self._has_tried = True
        sample = sample or take_sample(task.reader, task.sizes)
        size = self._ranks.size
        name = str(task.provenance["teacher"]) + (f" ({self._ranks})" if size > 1 else "")
        check_places(task.reader.tokenizer, sample.sequences, name)
        found = try_teacher(self.engine, sample.sequences, budget, task.reader.limits.max_length)
        if found is None:
            return {}
        found.check(name)
        if found.doubt:
            log.warning("%s: %s. --no-self-test silences this.", name, found.doubt)
        return {"self_test": found.facts()}


def _odd_turns(sample: Sample) -> dict[str, Any]:
    """Describe for the store the turns of a sample that cannot be used whole; mostly there is none.

    A kind that there is none of has no key.
    """
    counts = {kind: count for kind, count in sample.turns.items() if count}
    return {"turns": {"rows": sample.rows, **counts}} if counts else {}
