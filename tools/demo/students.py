"""Train and measure a student for every contender and seed, one for each core at a time.

Each has one thread, so that all are timed under equal conditions.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from logitstore.console.progress import progress
from tools.demo.commands import Commands, show
from tools.demo.settings import CONTENDERS, Contender, Settings, cores

Run = dict[str, Any]
#: A line of the table that a run logs; its first column is the step.
_LOGGED_STEP = re.compile(r"^ *(\d+)(?=  +[\d.]+%? )", re.MULTILINE)

#: How all students are trained, here and in `tools.experiment_quality`.
TRAINING = (
    *("--per_device_train_batch_size", "16"),
    *("--learning_rate", "2e-3", "--lr_scheduler_type", "cosine", "--warmup_steps", "20"),
    *("--save_strategy", "no"),
)


@contextmanager
def teacher_away(teacher: Path) -> Iterator[None]:
    """Hide the teacher in this context: students have the store and nothing else."""
    teacher.rename(_away(teacher))
    print(f"{teacher} is now {_away(teacher)}: no student can ask it", file=sys.stderr)
    try:
        yield
    finally:
        put_back(teacher)


def put_back(teacher: Path) -> None:
    """Undo :func:`teacher_away`, also for a run that was killed inside it."""
    if _away(teacher).exists():
        _away(teacher).rename(teacher)


def _away(teacher: Path) -> Path:
    return teacher.with_name(f"{teacher.name}.away")


def train_all(out: Path, settings: Settings, commands: Commands) -> list[Run]:
    """Train all students; return their run objects in the order of `CONTENDERS`, then seeds.

    A student that an interrupted demo finished is not trained again.
    """
    for contender in CONTENDERS:
        show(train_command(out, contender, settings.seeds[0], settings))
    jobs = [(contender, seed) for contender in CONTENDERS for seed in settings.seeds]
    left = [each for each in jobs if _measured(out, *each) is None]
    with ThreadPoolExecutor(max_workers=min(cores(), len(jobs))) as pool:
        futures = [pool.submit(_student, out, c, seed, settings, commands) for c, seed in jobs]
        try:
            _watch(
                futures,
                partial(steps_done, out, left, settings),
                len(left) * settings.student_steps,
            )
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C and SIGTERM too: nothing of ours may go on training
            pool.shutdown(wait=False, cancel_futures=True)
            commands.close()
            raise


def _watch(futures: "list[Future[Run]]", steps_done: Callable[[], int], steps: int) -> None:
    """Show progress until all are done, or raise the first failure."""
    waiting = set(futures)
    latest = "none yet"
    with progress(steps, "students", "steps") as shown:
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            for future in done:
                run = future.result()
                latest = f"{run['name']}-{run['seed']} at {run['bits_per_byte']:.3f} bits/byte"
            shown.reach(steps_done(), measured=f"{len(futures) - len(waiting)}", latest=latest)


def steps_done(out: Path, jobs: Sequence[tuple[Contender, int]], settings: Settings) -> int:
    """Count the steps of these students so far, from what each run has logged."""
    total = 0
    for contender, seed in jobs:
        if _measured(out, contender, seed) is not None:
            total += settings.student_steps
        elif (log := _log(out, contender, seed)).exists():
            total += max(map(int, _LOGGED_STEP.findall(log.read_text(errors="replace"))), default=0)
    return total


def _measured(out: Path, contender: Contender, seed: int) -> Run | None:
    """Return the run object of a student that is trained and measured."""
    results = _folder(out, contender, seed) / "results.json"
    if results.exists() and "bits_per_byte" in (run := json.loads(results.read_text())):
        return dict(run)
    return None


def _folder(out: Path, contender: Contender, seed: int) -> Path:
    return out / "students" / f"{contender.name}-{seed}"


def _log(out: Path, contender: Contender, seed: int, of: str = "train") -> Path:
    return out / "logs" / f"{contender.name}-{seed}-{of}.log"


def _student(
    out: Path, contender: Contender, seed: int, settings: Settings, commands: Commands
) -> Run:
    if (run := _measured(out, contender, seed)) is not None:
        return run
    folder = _folder(out, contender, seed)
    shutil.rmtree(folder, ignore_errors=True)
    training = train_command(out, contender, seed, settings)
    commands.run(training, threads=1, log=_log(out, contender, seed))
    evaluating = [*evaluate_command(folder, out), "--samples", "4"]
    log = _log(out, contender, seed, "evaluate")
    return dict(commands.json(evaluating, threads=1, log=log))


def train_command(out: Path, contender: Contender, seed: int, settings: Settings) -> list[str]:
    """Return the command line that trains this student."""
    return [
        *("distill", "train"),
        *("--model_name_or_path", str(out / "init" / str(seed))),
        *("--store", str(out / "store")),
        *contender.flags,
        *("--output_dir", str(_folder(out, contender, seed))),
        *("--run_name", contender.name),
        *("--max_steps", str(settings.student_steps), "--seed", str(seed)),
        *("--logging_steps", str(max(1, settings.student_steps // 25))),
        *TRAINING,
    ]


def evaluate_command(model: Path, out: Path) -> list[str]:
    """Return the command line that measures this student."""
    heldout = str(out / "data" / "heldout.jsonl")
    return ["distill", "evaluate", str(model), heldout, "--metrics", "bits_per_byte", "--json"]


def compare_command(out: Path, settings: Settings) -> list[str]:
    """Return the command line that compares the students."""
    students = [
        str(_folder(out, contender, seed)) for contender in CONTENDERS for seed in settings.seeds
    ]
    return ["distill", "compare", *students, "-o", str(out / "compare.html")]
