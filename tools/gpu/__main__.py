"""Run the stages that are missing, each in a process of its own, and write the results page.

A stage that meets its time limit keeps what it has measured, and goes on there in the next run.

python -m tools.gpu [--cpu] [--out FOLDER] [--only STAGE] [--skip STAGE] [--again]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tools.gpu.page import page
from tools.gpu.reports import is_whole, read_report

#: Every stage with its time limit in seconds; the last has jobs of its own to go on with.
STAGES = {"checks": 120, "capture": 120, "losses": 120, "steps": 120, "real": 480}


def run(stage: str, out: Path, *, cpu: bool) -> dict[str, object]:
    """Run one stage; whatever happens to it is its result."""
    command = [sys.executable, "-m", f"tools.gpu.{stage}", str(out / f"{stage}.json")]
    began = time.monotonic()
    with (out / f"{stage}.log").open("w") as log:
        try:
            done = subprocess.run(
                [*command, *(["--cpu"] if cpu else [])],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=STAGES[stage],
                check=False,
            )
            status = f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {STAGES[stage]} s"
    took_s = round(time.monotonic() - began, 1)
    print(f"{stage}: {status}, {took_s} s", file=sys.stderr, flush=True)
    return {"stage": stage, "status": status, "took_s": took_s}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="tiny sizes without a device")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="default: build/gpu")
    parser.add_argument("--only", action="append", choices=STAGES, help="may be repeated")
    parser.add_argument("--skip", action="append", choices=STAGES, default=[])
    parser.add_argument("--again", action="store_true", help="also stages that have a result")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, object] = {}
    for stage in args.only or STAGES:
        report = args.out / f"{stage}.json"
        if args.again:
            report.unlink(missing_ok=True)
        if stage not in args.skip and not is_whole(read_report(report)):
            runs[stage] = run(stage, args.out, cpu=args.cpu)
    reports = {stage: read_report(args.out / f"{stage}.json") for stage in STAGES}
    found = {stage: report for stage, report in reports.items() if report is not None}
    text = page(found)
    (args.out / "RESULTS.md").write_text(text)
    print(text)
    wanted = [s for s in args.only or STAGES if s not in args.skip]
    lacking = [s for s in wanted if not is_whole(reports[s])]
    if lacking:
        print(
            f"not all of: {', '.join(lacking)}; see the logs in {args.out}, and run it again to "
            "go on",
            file=sys.stderr,
        )
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
