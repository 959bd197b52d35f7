"""What each loss costs beyond cross-entropy: time and memory, forward and backward.

    python -m tools.bench_losses [--json] [--quick]

From hidden states to their gradient and that of the output embedding, in processes of their own:

* cross-entropy with all logits at once; chunk by chunk, recomputing the logits in the backward
  pass; and chunk by chunk with the gradient taken in the forward, as Liger's kernel does;
* cross-entropy plus each loss here, as the trainer takes it, from a store's top 64;
* of losses that read hidden states, beside the student's head the loss's own weights (a teacher of
  width 512): twice the logits, so they have no goal;
* the same with mapped_kl over events: groups of the student's tokens, 50,000 of 128,256 tokens and
  in proportion elsewhere. Two thirds have one token, the largest nearly 10,000, and half of a row's
  64 events are drawn by their number of tokens;
* cross-entropy plus ULD of two full vocabularies, both sorted; and TRL's ULDLoss, set to pair as
  the paper does. Their teacher's logits are made beforehand, and not counted.

Contenders take turns, so that a slow minute of the machine affects all of them. Time is the
process's CPU time on all cores; memory is the most it held beyond what it had before its turn.

Shape legend: N = labels, D = hidden width, V = vocabulary, K = entries, B = sequences.
"""

import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from tools.benchmark import PeakMemory, goal, run_sizes, said, table
from tools.loss_arrays import SIDECAR, K, Sizes
from tools.loss_contenders import CONTENDERS, IN_FORWARD, LOSSES, RECOMPUTED, SORTED, TINY, TRL


def contend(name: str, sizes: Sizes, ours: Connection) -> None:
    """Run a contender's process: do a step whenever it is told to, and report the time."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    CONTENDERS[name](TINY)()  # what is imported on first use must not count as the step's memory
    step, memory = CONTENDERS[name](sizes), PeakMemory()
    while ours.recv():
        began, wall = time.process_time(), time.perf_counter()
        value = step()
        spent = time.process_time() - began, time.perf_counter() - wall
        ours.send((*spent, memory.bytes_more(), value))


def measure(sizes: Sizes, turns: int) -> dict[str, dict[str, float]]:
    """Return the medians of each contender; the first turn warms up, except for slow ones."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers"])  # imported once, for all of them
    pipes, processes = {}, []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=contend, args=(name, sizes, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in CONTENDERS}
    for turn in range(turns):
        for name, pipe in pipes.items():
            is_slow = name in (SORTED, TRL)
            if is_slow and turn % 2:
                continue
            pipe.send(True)
            result = pipe.recv()
            if turn or is_slow:
                found[name].append(result)
            print(f"V = {sizes.V:,}, turn {turn}: {name}", file=sys.stderr, flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    names = ("cpu_s", "wall_s", "peak_bytes", "loss")
    return {
        name: dict(zip(names, map(statistics.median, zip(*each, strict=True)), strict=True))
        for name, each in found.items()
    }


def judged(measured: dict[str, dict[str, float]], vocabulary: int) -> dict[str, dict[str, Any]]:
    """Return every ratio that has a goal."""

    def ratio(what: str, a: str, b: str) -> float:
        return measured[a][what] / measured[b][what]

    faster = 3 if vocabulary > 100_000 else 2.2
    goals: dict[str, dict[str, Any]] = {"uld": {}}
    for other in (SORTED, TRL):
        speed = goal(ratio("cpu_s", other, "uld"), at_least=faster)
        goals["uld"] |= {
            f"times faster than {other}": speed,
            f"memory of {other}": goal(ratio("peak_bytes", "uld", other), at_most=0.1),
        }
    for name in (each for each in LOSSES if each not in SIDECAR):
        goals.setdefault(name, {}).update(
            {
                f"time of {RECOMPUTED}": goal(ratio("cpu_s", name, RECOMPUTED), at_most=1.15),
                f"time of {IN_FORWARD}": goal(ratio("cpu_s", name, IN_FORWARD), at_most=1.2),
                f"memory of {RECOMPUTED}": goal(ratio("peak_bytes", name, RECOMPUTED), at_most=1.1),
            }
        )
    return goals


def shown(sizes: Sizes, part: dict[str, Any]) -> str:
    measured, goals = part["measured"], part["goals"]
    rows = [["", "CPU s", "wall s", "peak MiB"]]
    rows += [
        [name, f"{m['cpu_s']:.2f}", f"{m['wall_s']:.2f}", f"{m['peak_bytes'] / 2**20:.0f}"]
        for name, m in measured.items()
    ]
    lines = [f"N = {sizes.N:,}, D = {sizes.D}, V = {sizes.V:,}, K = {K}", table(rows), ""]
    for name, each in goals.items():
        for what, figure in each.items():
            at = "at least" if what.startswith("times faster") else "at most"
            lines.append(f"  {name}: {what}: {said(figure, at)}")
    return "\n".join(lines)


def wanted(quick: bool) -> list[Sizes]:
    return [TINY] if quick else [Sizes(N=1024, D=512, V=v, B=8) for v in (32_000, 128_256)]


def part_of_report(sizes: Sizes, quick: bool) -> dict[str, Any]:
    measured = measure(sizes, turns=2 if quick else 4)
    return vars(sizes) | {"measured": measured, "goals": judged(measured, sizes.V)}


def main() -> None:
    run_sizes(
        __doc__,
        ["torch", "trl", "transformers"],
        threads=len(os.sched_getaffinity(0)),
        sizes=wanted,
        measure=part_of_report,
        shown=shown,
    )


if __name__ == "__main__":
    main()
