"""A teacher on some node of a cluster: loads the model once, then reads shard after shard.

This is what Ray makes an actor of. Its methods run on several threads (Ray's `max_concurrency`):
two shards may be in hand, one being read and one being committed, and it answers meanwhile how far
it is. Whatever the model does happens on one thread of its own.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from logitstore.capture.job import writer_of
from logitstore.capture.odd_turns import OddTurns
from logitstore.capture.own_teacher import OwnTeacher, Tried
from logitstore.capture.shard_worker import ShardRecords, ShardWorker
from logitstore.capture.sharing.claims import sign_of_alone
from logitstore.capture.sharing.sharing import folder_of_claims
from logitstore.capture.task import Task, prepare_part, versions
from logitstore.capture.text_sizes import TextSizes
from logitstore.capture.writer import CaptureWriter
from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import Ranks
from logitstore.errors import InputError, LogitStoreError, MismatchError, StorageError
from logitstore.format.spec import SPEC_FILE
from logitstore.ray.messages import Begun, Done, Failure, Job, Left, Said, ShardRows
from logitstore.storage.paths import StorePath, to_write

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Calls that a teacher takes at once: two shards, a question how far it is, a request to stop.
CONCURRENCY = 4
#: What a network file system may take to show a file that another machine has just written.
_SEEN_WITHIN_S = 10.0


class Teacher:
    """Reads shards that a driver hands out, and commits them.

    Args:
        job: The capture.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._said, self._lock = job, Said(), threading.Lock()
        self._stop = threading.Event()
        self._model = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        logging.getLogger("logitstore").setLevel(logging.INFO)
        logging.getLogger("logitstore").addHandler(_Lines(self._line))

    def start(self) -> str | Failure:
        """Find and load the model.

        Returns:
            Where it is.
        """
        return self._answer(lambda: self._model.submit(self._start).result())

    def try_it(self, sizes: TextSizes) -> Tried | Failure:
        """Try the model before there is a store.

        Args:
            sizes: How much text the rows have that it is tried with, and all shards.
        """
        task = self._task.over(self._task.rows, sizes)
        return self._answer(lambda: self._model.submit(self._try, task).result())

    def open(self, begun: Begun) -> Failure | None:
        """Open the store that was begun, and try the model if it has not been."""
        return self._answer(lambda: self._model.submit(self._open, begun).result())

    def capture(self, rows: ShardRows) -> Done | Left | Failure:
        """Read a shard, and commit it."""
        return self._answer(lambda: self._capture(rows))

    def said(self) -> Said:
        """Tell what there is to tell since this was last asked."""
        with self._lock:
            said, self._said = self._said, Said(work=dict(self._said.work))
        return said

    def stop(self) -> None:
        """Begin no other shard; those in hand are finished."""
        self._stop.set()

    # ---- on the model's thread ----

    def _start(self) -> str:
        job = self._job
        torch.set_num_threads(job.threads)
        self._check_devices()
        provenance = dict(job.provenance)
        self._task = prepare_part(job.teacher, job.part, job.settings, job.plan, provenance)
        self._check_same(self._task)
        self._own = OwnTeacher(self._task, Ranks())
        return f"{self._own.engine.place} of {socket.gethostname()}"

    def _try(self, task: Task) -> Tried:
        self._own.task = task
        tried = self._own.try_it(self._job.sample)
        self._own.task = self._task
        return tried

    def _open(self, begun: Begun) -> None:
        out = to_write(begun.out)
        _check_shared(out, begun)
        self._budget = begun.budget
        self._writer: CaptureWriter = writer_of(self._task, out)({})
        self._writer.journal.listeners.append(self._event)
        self._odd = _Noted(self._task, self._writer)
        if tried := self._own.self_test(begun.budget, self._job.sample):
            self._writer.note("self-test", **tried["self_test"])
        self._writer.keep_lm_head(self._own.engine)

    def _read(self, rows: ShardRows) -> tuple[ShardWorker, ShardRecords] | None:
        if self._stop.is_set():
            return None
        task = self._task.over(rows.part.rows(), rows.sizes)
        shown = _Shown(self._work, rows.index)
        worker = ShardWorker(
            task, self._writer, self._own.engine, self._budget, shown, lambda: None
        )
        worker.turns = self._odd
        return worker, worker.read_shard(rows.index)

    # ---- on any thread ----

    def _capture(self, rows: ShardRows) -> Done | Left:
        try:
            found = self._model.submit(self._read, rows).result()
            if found is None:
                return Left()
            worker, records = found
            return Done(worker.commit(rows.index, records))
        finally:
            with self._lock:
                self._said.work.pop(rows.index, None)

    def _answer(self, do: Callable[[], T]) -> T | Failure:
        try:
            return do()
        except LogitStoreError as error:
            return Failure.of(error)

    def _check_devices(self) -> None:
        """Reject a node where torch does not see what Ray promised."""
        settings = self._job.settings
        if not self._job.gpus or settings.device_map is not None:
            return
        if not torch.accelerator.is_available():
            raise InputError(
                f"--gpus-per-teacher is {self._job.gpus:g}, and Ray gave them on node "
                f"{socket.gethostname()}, but torch sees no accelerator there. Install a torch for "
                "its devices on every node, or use --gpus-per-teacher 0."
            )

    def _check_same(self, task: Task) -> None:
        """Reject a teacher that is another one on this node than the driver's."""
        mine, planned = vars(task.spec), vars(self._job.spec)
        differ = [name for name in planned if mine[name] != planned[name]]
        if differ:
            raise MismatchError(
                f"{self._job.teacher}: is another on node {socket.gethostname()} than where the "
                f"capture was planned (it differs in {', '.join(differ)}). Copy the same files to "
                "every node, or name a folder that all share."
            )
        theirs = self._job.provenance["versions"]
        for name, version in versions().items():
            if theirs.get(name) != version:
                log.warning(
                    "node %s has %s %s, the driver %s: records may differ by rounding from one "
                    "node to another. Install the same version everywhere.",
                    socket.gethostname(),
                    name,
                    version,
                    theirs.get(name),
                )

    def _work(self, index: int, done: int, tokens: int) -> None:
        with self._lock:
            self._said.work[index] = self._said.work.get(index, 0) + done
            self._said.tokens += tokens

    def _event(self, event: str, **facts: Any) -> None:
        with self._lock:
            self._said.events.append((event, facts))

    def _line(self, level: int, text: str) -> None:
        with self._lock:
            self._said.lines.append((level, text))


class _Shown:
    """Counts what a shard's worker has read, in place of a bar."""

    def __init__(self, count: Callable[[int, int, int], None], index: int) -> None:
        self._count, self._index, self.log = count, index, JsonLog()

    def update(
        self, done: int, *, rows: int = 0, tokens: int = 0, stored_bytes: int = 0, **facts: str
    ) -> None:
        self._count(self._index, done, tokens)


class _Noted(OddTurns):
    """Notes odd turns in the journal; the driver, which hears of it, warns of all teachers'."""

    def warn(self, shard: int, counts: Mapping[str, int]) -> None:
        pass


class _Lines(logging.Handler):
    """Hands on what is logged."""

    def __init__(self, hand_on: Callable[[int, str], None]) -> None:
        super().__init__(logging.INFO)
        self._hand_on = hand_on

    def emit(self, record: logging.LogRecord) -> None:
        self._hand_on(record.levelno, record.getMessage())


def _check_shared(out: StorePath, begun: Begun) -> None:
    """Reject a place that is not the driver's: a node's own folder of that name, or none.

    Raises:
        StorageError: `store.json`, or the driver's sign, is not there, or another.
    """
    until = time.monotonic() + _SEEN_WITHIN_S
    while found := _odd_of(out, begun):
        if time.monotonic() >= until:
            raise StorageError(
                f"{out}: on node {socket.gethostname()} there is {found}, and not the store that "
                "the driver has begun. Give an --out that all nodes of the Ray cluster share: a "
                "folder of a network file system, or a bucket (s3://…)."
            )
        time.sleep(0.2)


def _odd_of(out: StorePath, begun: Begun) -> str:
    """Say what is there instead of the driver's store; empty if it is that."""
    if not (out / SPEC_FILE).exists():
        return f"no {SPEC_FILE}"
    if (out / SPEC_FILE).sha256() != begun.spec_sha256:
        return f"another {SPEC_FILE}"
    folder = folder_of_claims(out)
    if folder is not None and sign_of_alone(folder) != begun.sign:
        return "another folder of that name"
    return ""
