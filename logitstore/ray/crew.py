"""The teachers of a capture on a Ray cluster: hired as there is room, handed shards, replaced.

A teacher is an actor of Ray (`teacher.py`). Its life: *hired* (Ray finds a node with what it needs,
or lets it wait for one), *started* (the model is loaded), *opened* (it sees the store), then handed
shards, at most two at a time, so that one is read while the other is committed.

What may happen meanwhile, and what comes of it:

    a node joins            a teacher more is hired, until there is one for every shard left
    a teacher or node dies  its shards are handed to others, and another is hired as there is room.
                            A shard whose teacher died is read alone from then on; one that costs
                            more than `max_restarts` teachers is left out and named
    a row cannot be read    its shard is left out and named, all others go on
    the store cannot be     shards in hand are finished, then that is the error
    written, or seen
    a signal to stop        shards in hand are finished
    this process dies       so do its actors: Ray ends them. What is committed stays; a twin that
                            commits late finds its shard there, and is discarded
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from logitstore.capture.own_teacher import Tried
from logitstore.capture.sharing.heartbeat import PATIENCE_S
from logitstore.capture.text_sizes import TextSizes
from logitstore.console.progress import duration
from logitstore.errors import IncompleteStoreError, LogitStoreError
from logitstore.ray.cluster import Needs, Room, last_line, ray_library
from logitstore.ray.messages import Begun, Done, Failure, Job, Left, Said, ShardRows
from logitstore.ray.teacher import CONCURRENCY, Teacher

log = logging.getLogger(__name__)

#: Shards that a teacher has in hand: one is read while the other is committed.
_IN_HAND = 2
#: So many shards that fail one after the other are no matter of a row.
_MOST_FAILED = 10
_WAIT_S, _SAID_EVERY_S, _LOOK_EVERY_S = 0.5, 1.0, 3.0


@dataclass(eq=False)
class Hired:
    """A teacher.

    Attributes:
        actor: Ray's handle.
        group: Its placement group, if it needs one.
        where: Where it runs; empty until it has loaded the model.
        is_ready: Whether it can be handed shards.
        shards: Those that it has in hand.
        work: What it has read of them.
        next_said_s: When it is asked next how far it is.
    """

    actor: Any
    group: Any = None
    where: str = ""
    is_ready: bool = False
    shards: set[int] = field(default_factory=set)
    work: dict[int, int] = field(default_factory=dict)
    next_said_s: float = 0.0


class Crew:
    """Hires teachers, and hands them shards.

    Args:
        job: What every teacher is told.
        needs: What each holds.
        wanted: How many there are to be; None: as many as there is room for.
        max_restarts: How many deaths a shard may cost.
        said: Is told what teachers have to tell.
    """

    def __init__(
        self,
        job: Job,
        needs: Needs,
        wanted: int | None,
        max_restarts: int,
        said: Callable[[Said], None],
    ) -> None:
        self._ray = ray_library()
        self._needs, self._wanted, self._max_restarts = needs, wanted, max_restarts
        self._tell, self._job = said, self._ray.put(job)
        self.hired: list[Hired] = []
        self._calls: dict[Any, tuple[Hired, str, Any]] = {}
        self._begun: Any = None
        self._left, self._fallen, self._in_a_row = deque[int](), 0, 0
        self._deaths: Counter[int] = Counter()
        self._next_look_s, self._idle_since_s = 0.0, time.monotonic()
        self.is_stopping = False
        self.failed: dict[int, Failure] = {}
        self.fatal: LogitStoreError | None = None
        self._answer: Any = None
        self._done: list[int] = []

    # ---- what a driver asks for ----

    def try_it(self, sizes: TextSizes) -> Tried:
        """Have one teacher try the model, before there is a store.

        Args:
            sizes: What the trial asks about the text of rows.

        Raises:
            LogitStoreError: What the teacher raised; or teachers died again and again.
        """
        told = self._ray.put(sizes)
        while self._answer is None:
            if not self.hired:
                self._hire()
            for each in self.hired:
                if each.where and not self._is_asked(each, "try_it"):
                    self._call(each, "try_it", told)
            self._step()
            if self.fatal is not None:
                raise self.fatal
        tried, self._answer = self._answer, None
        assert isinstance(tried, Tried)
        return tried

    def do(
        self,
        shards: Sequence[int],
        begun: Begun,
        rows_of: Callable[[int], ShardRows],
        *,
        is_asked_to_stop: Callable[[], bool],
        after_step: Callable[[Sequence[int]], None],
    ) -> None:
        """Have shards captured; `failed` has those that were left out, `fatal` what ended it.

        Args:
            shards: Their numbers.
            begun: The store.
            rows_of: Reads the rows of a shard.
            is_asked_to_stop: Tells whether a signal came.
            after_step: Is called about every second with the shards done since.
        """
        self._begun, self._left = begun, deque(shards)
        while self._left or any(each.shards for each in self.hired):
            if is_asked_to_stop() or self.fatal is not None:
                self._stop()
            self._hire_what_fits()
            for each in [h for h in self.hired if h.where]:
                if not each.is_ready and not self._is_asked(each, "open"):
                    self._call(each, "open", begun)
                while (index := self._next_for(each)) is not None:
                    each.shards.add(index)
                    self._hand(each, index, rows_of)
            self._step()
            done, self._done = self._done, []
            after_step(done)

    def work_in_hand(self) -> int:
        """Count what was read of shards that are not done."""
        return sum(sum(each.work.values()) for each in self.hired)

    @property
    def ready(self) -> int:
        """How many teachers read shards."""
        return sum(each.is_ready for each in self.hired)

    def hear_out(self) -> None:
        """Ask every teacher what is left to tell."""
        for each in [h for h in self.hired if h.is_ready]:
            with suppress(self._ray.exceptions.RayError):
                self._tell(self._ray.get(each.actor.said.remote(), timeout=_LOOK_EVERY_S))

    def end(self) -> None:
        """Let every teacher go, whatever it does."""
        for each in list(self.hired):
            self._dismiss(each)

    # ---- one step ----

    def _step(self) -> None:
        """Wait a little for answers, and take them."""
        for each in self.hired:
            if each.where and time.monotonic() >= each.next_said_s:
                each.next_said_s = time.monotonic() + _SAID_EVERY_S
                if not self._is_asked(each, "said"):
                    self._call(each, "said")
        if not self._calls:
            time.sleep(_WAIT_S)
        else:
            answered, _ = self._ray.wait(list(self._calls), timeout=_WAIT_S)
            for ref in answered:
                if ref in self._calls:  # not of a teacher that died of another answer
                    self._take(ref)
        if any(each.where for each in self.hired):
            self._idle_since_s = time.monotonic()
        elif time.monotonic() - self._idle_since_s > PATIENCE_S:
            self.fatal = self.fatal or IncompleteStoreError(
                f"the Ray cluster gave room for no teacher, which needs {self._needs}, for "
                f"{duration(PATIENCE_S)}. See `ray status`, add nodes, then run the same command "
                "again: it does only what is missing."
            )

    def _take(self, ref: Any) -> None:
        each, method, given = self._calls.pop(ref)
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._lose(each, last_line(error))
            return
        if isinstance(answer, Failure):
            self._fail(each, method, given, answer)
        elif method == "start":
            each.where, self._idle_since_s = answer, time.monotonic()
            log.info("a teacher is ready: %s", answer)
        elif method == "open":
            each.is_ready, self._fallen = True, 0
        elif method == "said":
            each.work = {i: n for i, n in answer.work.items() if i in each.shards}
            self._tell(answer)
        elif method == "capture":
            self._finish(each, given, answer)
        else:
            self._answer = answer

    def _finish(self, each: Hired, index: int, answer: Done | Left) -> None:
        each.shards.discard(index)
        each.work.pop(index, None)
        if isinstance(answer, Done):
            self._in_a_row = 0
            self._done.append(index)

    def _fail(self, each: Hired, method: str, index: Any, failure: Failure) -> None:
        if method != "capture" or not failure.is_of_rows:
            self.fatal = self.fatal or failure.error()
            if method == "capture":
                each.shards.discard(index)
            else:
                self._dismiss(each)
            return
        each.shards.discard(index)
        each.work.pop(index, None)
        self._leave_out(index, failure)

    def _leave_out(self, index: int, failure: Failure) -> None:
        log.warning("shard %d is left out, the others go on: %s", index + 1, failure.text)
        self.failed[index] = failure
        self._in_a_row += 1
        if self._in_a_row >= _MOST_FAILED and self.fatal is None:
            self.fatal = failure.error()

    def _lose(self, each: Hired, why: str) -> None:
        """Hand the shards of a teacher that died to others."""
        where = each.where or "before it had loaded the model"
        log.warning("a teacher died (%s): %s", where, why)
        lost = sorted(each.shards)
        self._dismiss(each)
        if not lost:
            self._fallen += 1
            if self._fallen > self._max_restarts and self.fatal is None:
                self.fatal = IncompleteStoreError(
                    f"--max-restarts is {self._max_restarts}, and {self._fallen} teachers in a row "
                    f"died before they read a shard, the last with: {why}. See Ray's logs; is "
                    "`pip install 'logitstore[ray,train]'` done on every node, and is there memory "
                    "for the model? Then run the same command again."
                )
        for index in reversed(lost):
            self._deaths[index] += 1
            if self._deaths[index] > self._max_restarts:
                text = (
                    f"{self._deaths[index]} teachers died while they read it (--max-restarts is "
                    f"{self._max_restarts}), the last with: {why}. If memory ran out, use a "
                    "smaller --tokens-per-batch or --max-length."
                )
                self._leave_out(index, Failure(IncompleteStoreError.kinds[0], text, True))
            elif not self.is_stopping:
                self._left.appendleft(index)

    # ---- who does what ----

    def _next_for(self, each: Hired) -> int | None:
        """Choose a shard for a teacher; one whose teacher died is read alone."""
        if self.fatal is not None or not each.is_ready or len(each.shards) >= _IN_HAND:
            return None
        if any(self._deaths[i] for i in each.shards):
            return None
        for index in self._left:
            if not (self._deaths[index] and each.shards):
                self._left.remove(index)
                return index
        return None

    def _hand(self, each: Hired, index: int, rows_of: Callable[[int], ShardRows]) -> None:
        try:
            rows = rows_of(index)
        except LogitStoreError as error:  # the dataset has changed
            each.shards.discard(index)
            self.fatal = self.fatal or error
            return
        self._calls[each.actor.capture.remote(rows)] = (each, "capture", index)

    def _stop(self) -> None:
        if not self.is_stopping:
            self.is_stopping = True
            for each in self.hired:
                each.actor.stop.remote()
        self._left.clear()

    def _call(self, each: Hired, method: str, *given: Any) -> None:
        self._calls[getattr(each.actor, method).remote(*given)] = (each, method, None)

    def _is_asked(self, each: Hired, method: str) -> bool:
        return any(h is each and name == method for h, name, _ in self._calls.values())

    # ---- hiring ----

    def _hire_what_fits(self) -> None:
        if self.is_stopping or time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + _LOOK_EVERY_S
        room = self._wanted or self._needs.room(Room.now())
        useful = len(self._left) + sum(bool(each.shards) for each in self.hired)
        for _ in range(min(room, useful) - len(self.hired)):
            self._hire()

    def _hire(self) -> None:
        needs, group, options = self._needs, None, dict[str, Any]()
        if needs.bundles:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            strategy = "PACK" if needs.is_spread else "STRICT_PACK"
            group = self._ray.util.placement_group(needs.bundles, strategy=strategy)
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            )
        actor = (
            self._ray.remote(Teacher)
            .options(
                num_gpus=0 if needs.is_spread else needs.gpus,
                num_cpus=needs.cpus,
                max_concurrency=CONCURRENCY,
                max_restarts=0,  # a shard is handed to whoever is free, not to who comes back
                **options,
            )
            .remote(self._job)
        )
        each = Hired(actor, group)
        self.hired.append(each)
        self._call(each, "start")

    def _dismiss(self, each: Hired) -> None:
        self.hired.remove(each)
        for ref in [ref for ref, (who, _, _) in self._calls.items() if who is each]:
            del self._calls[ref]
        self._ray.kill(each.actor)
        if each.group is not None:
            self._ray.util.remove_placement_group(each.group)
