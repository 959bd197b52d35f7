"""Run many jobs in worker processes that share a device, until a deadline.

A worker takes a group of jobs that differ in their seed alone, since they share their examples. It
appends each result to the file as soon as it has it, as one short write, so nothing that is
finished is ever lost.

What a job is, its experiment says: a module with the functions of :class:`Work`.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from logitstore.console.progress import progress
from logitstore.errors import LogitStoreError


class Job(Protocol):
    """One student to train and measure."""

    @property
    def name(self) -> str:
        """A name of its own."""

    @property
    def contender(self) -> str:
        """How it is trained; one that cannot be is left out with a note, once."""

    @property
    def kind(self) -> str:
        """What jobs that take about as long have in common."""

    @property
    def before(self) -> tuple[str, int] | None:
        """The student that must have been trained before, and its seed."""


class Work(Protocol):
    """The module of an experiment, as a worker sees it."""

    def is_trained(self, run: "Run", student: str, seed: int) -> bool:
        """Tell whether a student has been trained before."""

    def train_before(self, run: "Run", student: str, seed: int) -> float:
        """Train a student before, keep it, and return its bits per byte."""

    def run_job(self, run: "Run", job: Any) -> dict[str, Any]:
        """Train and measure a student: JSON with its `name`, `start` and `seconds`.

        Raises:
            TypeError, LogitStoreError, FileNotFoundError: This version of `distill` cannot.
        """


@dataclass(frozen=True)
class Run:
    """What all workers know.

    Attributes:
        module: The experiment's module, a :class:`Work`; importing it is dear.
        folder: The parts of the experiment.
        scale: Its sizes.
        results: The file that results are appended to.
        device: `cpu` or `cuda`.
        workers: Number of processes.
        shared: A folder for what workers share while they run.
        deadline: Time of the clock after which no job is begun that would not end before.
    """

    module: str
    folder: Path
    scale: Any
    results: Path
    device: str
    workers: int
    deadline: float
    shared: Path

    @property
    def work(self) -> Work:
        return import_module(self.module)  # type: ignore[return-value]


def known(folder: Path, results: Path) -> set[tuple[str, str]]:
    """Return the jobs that have a result, each with the start that it had."""
    files = {*folder.glob("results*.jsonl"), *([results] if results.exists() else [])}
    runs = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {(run["name"], run["start"]) for run in runs}


def lacking(run: Run, groups: Sequence[Sequence[Job]], start_of: Callable[[Any], str]) -> Any:
    """Leave out the jobs that have a result for the start that they have now.

    Args:
        run: Where results are.
        groups: Jobs, in groups.
        start_of: Names the weights that a job begins with.
    """
    done = known(run.folder, run.results)
    left = [[job for job in group if (job.name, start_of(job)) not in done] for group in groups]
    return [group for group in left if group]


def run_all(run: Run, groups: Sequence[Sequence[Job]]) -> int:
    """Train students before where they are missing, then run all jobs; return how many were run."""
    with ProcessPoolExecutor(
        run.workers, mp_context=_context(run), initializer=_begin, initargs=(run,)
    ) as pool:
        wanted = [job.before for group in groups for job in group if job.before is not None]
        _watch([pool.submit(_before, *each) for each in dict.fromkeys(wanted)], "students before")
        done = _watch([pool.submit(_group, list(group)) for group in groups], "groups of jobs")
    return sum(done)


def _context(run: Run) -> Any:
    """Make processes that fork from one that has imported everything and done nothing else.

    CUDA cannot be used in a fork of a process that has as much as asked for it. Should an import do
    so, every worker imports everything for itself, which takes half a minute.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([run.module])
    tried = context.Process(target=_try, args=(run.device,))
    tried.start()
    tried.join()
    if tried.exitcode == 0:
        return context
    _say(f"{run.device} cannot be used in forked workers: each imports for itself")
    return get_context("spawn")


def _try(device: str) -> None:
    import torch

    torch.zeros(1, device=device).add(1).item()


def _watch(futures: "list[Future[int]]", what: str) -> list[int]:
    done = []
    with progress(len(futures), what, what) as shown:
        for future in as_completed(futures):
            done.append(future.result())
            shown.update(1)
    return done


# ---- in a worker ----

_run: Run | None = None


def _begin(run: Run) -> None:
    global _run
    _run = run
    import torch
    from transformers.utils import logging

    from distill.head import student_head

    if run.device == "cuda":
        # Chunks of the head are small to stay in a processor's cache; a GPU waits for each of them.
        student_head.CHUNK_LOGITS, student_head.CHUNK_TOKENS = 2**26, 4096
    torch.set_num_threads(
        max(1, (os.cpu_count() or 1) // run.workers) if run.device == "cpu" else 1
    )
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _before(student: str, seed: int) -> int:
    assert _run is not None
    if _run.work.is_trained(_run, student, seed):
        return 0
    began = time.perf_counter()
    bits = _run.work.train_before(_run, student, seed)
    took = time.perf_counter() - began
    _say(f"before: {student} {seed} at {bits:.4f} bits/byte, {took:.1f} s")
    return 1


def _group(group: list[Job]) -> int:
    return sum(1 for _ in _results(group))


_latest_s: dict[str, float] = {}


def _results(group: list[Job]) -> Iterator[dict[str, Any]]:
    """Run the jobs of a group while there is time, and keep each result."""
    assert _run is not None
    for job in group:
        if time.time() + _latest_s.get(job.kind, 0) > _run.deadline:
            return
        try:
            result = _run.work.run_job(_run, job)
        except (TypeError, LogitStoreError, FileNotFoundError) as error:
            _leave_out(job, error)
            return
        except Exception:  # of one contender: hours of others must not be lost for it
            _leave_out(job, RuntimeError(traceback.format_exc()))
            return
        _latest_s[job.kind] = result["seconds"]
        with _run.results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        yield result


_left_out: set[str] = set()


def _leave_out(job: Job, error: Exception) -> None:
    """Say once for each contender why it is left out."""
    if job.contender not in _left_out:
        _say(f"left out: {job.name}: {error}")
    _left_out.add(job.contender)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
