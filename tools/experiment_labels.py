"""Which labels help students? Every map, with and without its parts, against cross-entropy.

    python -m tools.experiment_labels prepare          texts, store, tokenizers: minutes
    python -m tools.experiment_labels run [--jobs 'unigram/trained/gentle/*'] [--deadline 300]
    python -m tools.experiment_labels list [--jobs …]  the jobs and whether they are done
    python -m tools.experiment_labels carry FOLDER     what another machine needs
    python -m tools.experiment_labels page             keeps the results beside this file

A real teacher, SmolLM2-135M-Instruct, has read 944 rows of Python's documentation and sources.
Students of 1.6 to 2.3 million weights learn from its store: new ones, and ones that were trained by
cross-entropy on other documents before; gently and at a normal rate; with four tokenizers, of which
one is the teacher's own: that is the control, whose every label is exact. What is measured is
held-out bits per byte, against cross-entropy from the same start on the same rows in the same
order.

Each part can be stopped at any time, and goes on when it is run again. A result is a line in
`results*.jsonl` of the folder; to merge those of another machine, copy its file there. Contenders
that this version of `distill` does not have are left out with a note. Jobs run in the order of
`list`: the most decisive first. On a machine with a CUDA device, `tools/gpu/labels.sh` runs it.
"""

import argparse
import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from logitstore.reading.shard_cache import FOLDER_VARIABLE
from tools.experiment_labels_page import keep, read, tables
from tools.labels import parts
from tools.labels.settings import FULL, QUICK, Job, Scale, jobs
from tools.workers import Run, known, run_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["prepare", "run", "list", "carry", "page"])
    parser.add_argument("out", type=Path, nargs="?", help="of `carry`: the folder to make")
    parser.add_argument("--folder", type=Path, help="default: build/labels")
    parser.add_argument("--quick", action="store_true", help="a smoke test; figures mean nothing")
    parser.add_argument("--jobs", default="*", help="shell patterns of job names, `;` between them")
    parser.add_argument("--again", action="store_true", help="also jobs that have a result")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--deadline", type=float, default=1e9, metavar="SECONDS")
    parser.add_argument("--results", type=Path, help="default: results.jsonl of the folder")
    parser.add_argument("--without-weights", action="store_true", help="of `carry`")
    args = parser.parse_args()
    began, scale = time.time(), QUICK if args.quick else FULL
    args.folder = args.folder or Path("build/labels-quick" if args.quick else "build/labels")
    if args.command == "prepare":
        parts.prepare(args.folder, scale)
    elif args.command == "carry":
        size = parts.carry(args.folder, args.out, with_weights=not args.without_weights)
        print(f"{args.out}: {size / 2**20:.1f} MiB")
    elif args.command == "page":
        print(tables(read(args.folder)) if args.quick else keep(args.folder))
    else:
        _run_or_list(args, scale, began + args.deadline)


def _run_or_list(args: argparse.Namespace, scale: Scale, deadline: float) -> None:
    results = args.results or args.folder / "results.jsonl"
    done = set() if args.again else known(args.folder, results)
    wanted = jobs(scale, args.jobs)

    start_of = cache(lambda setting, seed: parts.start_of(args.folder, setting, seed))

    def is_done(job: Job) -> bool:
        return (job.name, start_of(job.setting, job.seed)) in done

    if args.command == "list":
        for job in (job for group in wanted for job in group):
            print("done" if is_done(job) else "    ", job.name)
        return
    lacking = [[job for job in group if not is_done(job)] for group in wanted]
    lacking = [group for group in lacking if group]
    print(f"{sum(map(len, lacking)):,} jobs to run", file=sys.stderr)
    os.environ.setdefault(FOLDER_VARIABLE, str((args.folder / "cache").resolve()))
    with tempfile.TemporaryDirectory() as shared:
        run = Run(
            "tools.labels.students",
            *(args.folder, scale, results, args.device, args.workers, deadline, Path(shared)),
        )
        count = run_all(run, lacking)
    print(f"{count:,} jobs were run")


if __name__ == "__main__":
    main()
