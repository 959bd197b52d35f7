"""Run many jobs in worker processes that share a device, until a deadline.

A worker takes a group of jobs that differ in their seed alone, since they share their examples. It
appends each result to the file as soon as it has it, as one short write, so nothing that is
finished is ever lost.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from logitstore.console.progress import progress
from logitstore.errors import LogitStoreError
from tools.labels import parts
from tools.labels.settings import Job, Scale


@dataclass(frozen=True)
class Run:
    """What all workers know.

    Attributes:
        folder: The parts of the experiment.
        scale: Its sizes.
        results: The file that results are appended to.
        device: `cpu` or `cuda`.
        workers: Number of processes.
        shared: A folder for what workers share while they run.
        deadline: Time of the clock after which no job is begun that would not end before.
    """

    folder: Path
    scale: Scale
    results: Path
    device: str
    workers: int
    deadline: float
    shared: Path


def known(folder: Path, results: Path) -> set[tuple[str, str]]:
    """Return the jobs that have a result, each with the start that it had."""
    files = {*folder.glob("results*.jsonl"), *([results] if results.exists() else [])}
    runs = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {(run["name"], run["start"]) for run in runs}


def run_all(run: Run, groups: Sequence[Sequence[Job]]) -> int:
    """Train students before where they are missing, then run all jobs; return how many were run."""
    with ProcessPoolExecutor(
        run.workers, mp_context=_context(run.device), initializer=_begin, initargs=(run,)
    ) as pool:
        wanted = [
            (job.setting.student, job.seed)
            for group in groups
            for job in group
            if job.setting.start == "trained"
        ]
        missing = [
            each
            for each in dict.fromkeys(wanted)
            if not parts.before_file(run.folder, *each).exists()
        ]
        _watch([pool.submit(_before, *each) for each in missing], "students before")
        done = _watch([pool.submit(_group, list(group)) for group in groups], "groups of jobs")
    return sum(done)


def _context(device: str) -> Any:
    """Make processes that fork from one that has imported everything and done nothing else.

    CUDA cannot be used in a fork of a process that has as much as asked for it. Should an import do
    so, every worker imports everything for itself, which takes half a minute.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tools.labels.students"])
    tried = context.Process(target=_try, args=(device,))
    tried.start()
    tried.join()
    if tried.exitcode == 0:
        return context
    _say(f"{device} cannot be used in forked workers: each imports for itself")
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
    from tools.labels.students import train_before

    assert _run is not None
    began = time.perf_counter()
    bits = train_before(_run.folder, student, seed, _run.scale, _run.device)
    took = time.perf_counter() - began
    _say(f"before: {student} {seed} at {bits:.4f} bits/byte, {took:.1f} s")
    return 1


def _group(group: list[Job]) -> int:
    return sum(1 for _ in _results(group))


_latest_s: dict[str, float] = {}


def _results(group: list[Job]) -> Iterator[dict[str, Any]]:
    """Run the jobs of a group while there is time, and keep each result."""
    from tools.labels.students import run_job

    assert _run is not None
    for job in group:
        if time.time() + _latest_s.get(job.setting.rate, 0) > _run.deadline:
            return
        try:
            result = run_job(_run.folder, job, _run.scale, _run.device, _run.shared)
        except (TypeError, LogitStoreError, FileNotFoundError) as error:
            _leave_out(job, error)
            return
        except Exception:  # of one contender: hours of others must not be lost for it
            _leave_out(job, RuntimeError(traceback.format_exc()))
            return
        _latest_s[job.setting.rate] = result["seconds"]
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
