"""Do students of a real teacher gain? Pruned, foreign and new ones, on text and on its answers.

    python -m tools.experiment_real prepare [--size cpu|gpu]   texts, questions, stores, tokenizers
    python -m tools.experiment_real cost    [--size cpu|gpu]   times a step of each kind: minutes
    python -m tools.experiment_real run     [--jobs 'foreign/answers/*'] [--deadline 300]
    python -m tools.experiment_real list    [--jobs …]         the jobs and whether they are done
    python -m tools.experiment_real page                       keeps the results beside this file

The teacher is SmolLM2-135M-Instruct. Its students are as people have them: every third layer of the
teacher with its tokenizer (*pruned*), the same layers with Llama 2's vocabulary (*foreign*), both
healed briefly by cross-entropy on other text; and a small model with random weights (*new*). They
learn from two stores: of documentation and sources (*text*), and of the teacher's own answers to
questions over documentation (*answers*), as in the paper of ULD (arXiv:2402.12030). Measured on
modules of the library that nothing else has anything of: bits per byte, calibration, and for
answers the F1 and exact match of words, against the teacher's answers and against the rules'.

Each part can be stopped at any time, and goes on when it is run again. A result is a line in
`results*.jsonl` of the folder; to merge those of another machine, copy its file there. Jobs run in
the order of `list`: the most decisive first. `cpu` is made for six hours on two cores, `gpu` for
eight minutes on one GPU, beside `prepare`, where `tools/gpu/run.sh` runs it.
"""

import argparse
import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from tools.experiment_real_page import keep, read, tables
from tools.real import parts
from tools.real.settings import SCALES, jobs
from tools.workers import Run, lacking, run_all

COMMANDS = ("prepare", "cost", "run", "list", "page")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--size", choices=list(SCALES), default="cpu", help="quick: a smoke test")
    parser.add_argument("--folder", type=Path, help="default: build/experiment-real-SIZE")
    parser.add_argument("--jobs", default="*", help="shell patterns of job names, `;` between them")
    parser.add_argument("--workers", type=int, help="default: one a core; of a GPU, 4")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: as the size says")
    parser.add_argument("--deadline", type=float, default=1e9, metavar="SECONDS")
    parser.add_argument("--results", type=Path, help="default: results.jsonl of the folder")
    args = parser.parse_args()
    began, scale = time.time(), SCALES[args.size]
    folder = args.folder or Path(f"build/experiment-real-{args.size}")
    if args.command == "prepare":
        parts.prepare(folder, scale)
    elif args.command == "cost":
        from tools.real.cost import cost

        print(cost(scale))
    elif args.command == "page":
        print(tables(read(folder)) if args.size == "quick" else keep(folder))
    else:
        device = args.device or ("cuda" if args.size == "gpu" else "cpu")
        workers = args.workers or (4 if device == "cuda" else os.cpu_count() or 1)
        with tempfile.TemporaryDirectory() as shared:
            run = Run(
                "tools.real.students",
                *(folder, scale, args.results or folder / "results.jsonl", device, workers),
                *(began + args.deadline, Path(shared)),
            )
            _run_or_list(run, args.jobs, is_list=args.command == "list")


def _run_or_list(run: Run, patterns: str, *, is_list: bool) -> None:
    wanted = jobs(run.scale, patterns)
    start_of = cache(lambda setting, heal: parts.start_of(run.folder, setting, heal))
    left = lacking(run, wanted, lambda job: start_of(job.setting, job.heal))
    if is_list:
        names = {job.name for group in left for job in group}
        for job in (job for group in wanted for job in group):
            print("    " if job.name in names else "done", job.name)
        return
    if not wanted:
        sys.exit(f"error: --jobs {patterns}: no job has such a name; `list` lists them.")
    print(f"{sum(map(len, left)):,} jobs to run", file=sys.stderr)
    print(f"{run_all(run, left):,} jobs were run")


if __name__ == "__main__":
    main()
