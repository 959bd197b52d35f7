"""What a training step costs: from a store, beside a live teacher, and with cross-entropy alone.

    python -m tools.bench_train [--json] [--quick]

Steps of `transformers.Trainer`, with data, AdamW and clipping, of one student of 100 million
parameters and 32,000 tokens, on the same rows, in processes of their own:

* cross-entropy alone, through the same chunked head: all other contenders compute this, too;
* cross-entropy plus each loss here, from a store's top 64;
* cross-entropy as transformers itself computes it, all logits at once;
* a live teacher with the student's tokenizer, which predicts its whole vocabulary in every step
  (`tools/live_teacher.py`); and that teacher's forward pass alone;
* TRL's GOLD trainer, off-policy: ULD by bytes against a live teacher of another tokenizer. (Left
  out where TRL is not installed.)

Contenders take turns with cross-entropy alone, a few at a time because of the memory, so that a
slow minute of the machine affects both sides of a ratio. Time is the process's CPU time on all
cores, the least of its steps without the first, since other programs can only add to it. Memory is
the most it held beyond what Python and its libraries hold. Models and stores take 4 GiB of disk
under build/, and are kept.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from tools.benchmark import PeakMemory, goal, said, surroundings, table
from tools.train_contenders import (
    CE,
    CONTENDERS,
    DENSE,
    FORWARD,
    FROM_STORE,
    FULL,
    GOLD,
    LIVE,
    QUICK,
    Sizes,
    gold_trainer,
    prepare,
    student_parameters,
    teacher_of,
    tokens_of_a_step,
    trainer_class,
)

BUILD = Path(__file__).resolve().parent.parent / "build" / "bench_train"
#: Not imported beforehand if it is not installed.
TRL_GOLD = "trl.experimental.gold"
#: Groups of contenders that take turns with cross-entropy alone: as many as fit into 16 GiB.
GROUPS = (
    ("uld", "mapped_kl", "alm"),
    ("multilevel_ot", "tail_kl", "sampled_kl"),
    (DENSE, LIVE, FORWARD),
    (GOLD,),
)

Measured = dict[str, float]


# ---- a contender's process ----


class Turns:
    """A meter that reports the cost of a step, and waits for the signal to take the next."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.memory = pipe, PeakMemory()

    def begin(self) -> bool:
        """Wait for this process's turn; return whether there is a next step."""
        more = bool(self.pipe.recv())
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        return more

    def end(self, store_wait: float | None = None) -> None:
        """Report the cost of the step that has ended."""
        self.pipe.send(
            {
                "cpu_s": time.process_time() - self._cpu_s,
                "wall_s": time.perf_counter() - self._wall_s,
                "peak_bytes": self.memory.bytes_more(),
                "store_wait_fraction": store_wait,
            }
        )


def taking_turns(cls: type[Trainer], turns: Turns) -> type[Trainer]:
    """Make a trainer take turns; a step lasts from asking for its data to asking for the next's."""

    class TakingTurns(cls):  # type: ignore[valid-type, misc]
        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            if self.control.should_training_stop:  # once more at the end of an epoch
                return
            turns.end(store_wait=self.state.log_history[-1].get("store_wait_fraction"))
            if not turns.begin():
                self.control.should_training_stop = True

    return TakingTurns


def contend(name: str, folder: Path, sizes: Sizes, pipe: Connection) -> None:
    """Run a contender's process: take a step whenever it is told to."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    warnings.simplefilter("ignore")
    turns = Turns(pipe)
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
        tempfile.TemporaryDirectory() as out,
    ):
        if name == FORWARD:
            ask_teacher(folder, sizes, Path(out), turns)
            return
        cls, (make, store, settings) = trainer_class(name), CONTENDERS[name]
        with redirect_stderr(nowhere):  # progress of what is done once
            trainer = make(taking_turns(cls, turns), folder, sizes, Path(out), store, **settings)
        turns.begin()
        trainer.train()


def ask_teacher(folder: Path, sizes: Sizes, out: Path, turns: Turns) -> None:
    """Run the forward pass of the live teacher on the same batches."""
    make, _, settings = CONTENDERS[CE]
    trainer = make(trainer_class(CE), folder, sizes, out, "same", **settings)
    batches = iter(trainer.get_train_dataloader())
    teacher = teacher_of(folder, "same")
    while turns.begin():
        batch = next(batches)
        with torch.no_grad():
            teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        turns.end()


# ---- turns ----


class Started:
    """A contender's process, as the parent process sees it."""

    def __init__(self, name: str, folder: Path, sizes: Sizes) -> None:
        context = multiprocessing.get_context("forkserver")
        # Imported once, for all of them. (`__main__`, as this module is called here, cannot be.)
        context.set_forkserver_preload(["tools.train_contenders", TRL_GOLD])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=contend, args=(name, folder, sizes, theirs), daemon=True
        )
        self.process.start()
        theirs.close()

    def step(self) -> Measured:
        self.pipe.send(True)
        found: Measured = self.pipe.recv()
        return found

    def stop(self) -> None:
        self.pipe.send(False)
        self.process.join()


def measure(folder: Path, sizes: Sizes) -> Iterator[dict[str, Measured]]:
    """Measure the contenders of each group."""
    for group in GROUPS:
        names = [CE, *(n for n in group if n != GOLD or gold_trainer() is not None)]
        started = {name: Started(name, folder, sizes) for name in names}
        found: dict[str, list[Measured]] = {name: [] for name in names}
        for turn in range(sizes.steps):
            for name, contender in started.items():
                found[name].append(contender.step())
                print(f"turn {turn}: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
        for contender in started.values():
            contender.stop()
        yield {name: _least(each) for name, each in found.items()}


def _least(steps: Sequence[Measured]) -> Measured:
    """Return the least of each figure without the first step, and the most memory of any step."""
    found = {
        key: min(step[key] for step in steps[1:]) for key in steps[0] if steps[-1][key] is not None
    }
    return found | {"peak_bytes": max(step["peak_bytes"] for step in steps)}


# ---- what it comes to ----


def relative(groups: Sequence[dict[str, Measured]], what: str) -> dict[str, float]:
    """Return each contender's figure over that of cross-entropy alone in its own group."""
    return {
        name: measured[what] / group[CE][what]
        for group in reversed(groups)  # a contender of two groups counts in its first
        for name, measured in group.items()
    }


def judged(groups: Sequence[dict[str, Measured]]) -> dict[str, dict[str, Any]]:
    """Return every figure that has a goal, by loss."""
    times, peaks = relative(groups, "cpu_s"), relative(groups, "peak_bytes")
    waits = {name: each for group in groups for name, each in group.items()}
    return {
        name: {
            f"time of {CE}": goal(times[name], at_most=1.15),
            f"saved beside a {LIVE}, of its forward": goal(
                (times[LIVE] - times[name]) / times[FORWARD], at_least=1
            ),
            f"memory of {CE}": goal(peaks[name], at_most=1.05),
            f"memory of {DENSE}": goal(peaks[name] / peaks[DENSE], at_most=0.85),
            "of the time, spent waiting for the store": goal(
                waits[name]["store_wait_fraction"], at_most=0.01
            ),
        }
        for name in FROM_STORE
    }


def reported(groups: Sequence[dict[str, Measured]], tokens: float) -> dict[str, dict[str, Any]]:
    """Format a line for each contender, relative to cross-entropy alone in its own group."""
    first = {name: each for group in reversed(groups) for name, each in group.items()}
    ratios = {what: relative(groups, what) for what in ("cpu_s", "peak_bytes")}
    return {
        name: first[name]
        | {
            "tokens_per_second": tokens / first[name]["wall_s"],
            "tokens_per_cpu_second": tokens / first[name]["cpu_s"],
            f"time of {CE}": ratios["cpu_s"][name],
            f"memory of {CE}": ratios["peak_bytes"][name],
        }
        for name in [*CONTENDERS, FORWARD]
        if name in first
    }


def shown(contenders: dict[str, Any], goals: dict[str, Any]) -> str:
    head = ["", "CPU s", "of CE only", "tokens/CPU s", "tokens/s", "peak MiB", "of CE only"]
    rows = [
        [
            name,
            f"{m['cpu_s']:.2f}",
            f"{m[f'time of {CE}']:.2f}",
            f"{m['tokens_per_cpu_second']:,.0f}",
            f"{m['tokens_per_second']:,.0f}",
            f"{m['peak_bytes'] / 2**20:,.0f}",
            f"{m[f'memory of {CE}']:.2f}",
        ]
        for name, m in contenders.items()
    ]
    lines = [table([head, *rows]), ""]
    for name, each in goals.items():
        for what, figure in each.items():
            at = "at least" if what.startswith("saved") else "at most"
            lines.append(f"  {name}: {what}: {said(figure, at)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    args = parser.parse_args()
    sizes = QUICK if args.quick else FULL
    os.environ |= {
        "OMP_WAIT_POLICY": "PASSIVE",  # or one thread's waiting for another would count as work
        "MALLOC_ARENA_MAX": "1",  # or what is held differs from run to run by the goal itself
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "quick" if args.quick else BUILD
        with redirect_stdout(sys.stderr):
            prepare(folder, sizes)
        parameters, tokens = student_parameters(folder), tokens_of_a_step(folder, sizes)
        groups = list(measure(folder, sizes))
    contenders = reported(groups, tokens)
    goals = judged(groups)
    report: dict[str, Any] = {
        **surroundings(["torch", "transformers", "accelerate", "trl"]),
        "threads": len(os.sched_getaffinity(0)),
        "parameters": parameters,
        "rows a step": sizes.rows,
        "tokens a step": tokens,
        "contenders": contenders,
        "goals": goals,
    }
    print(json.dumps(report, indent=1) if args.json else shown(contenders, goals))


if __name__ == "__main__":
    main()
