"""Run the stages that are missing, each in a process of its own, and write the results page.

python -m tools.gpu [--cpu] [--out FOLDER] [--only STAGE] [--skip STAGE] [--again]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tools.gpu.page import page

#: Every stage with its time limit in seconds.
STAGES = {"checks": 150, "capture": 120, "losses": 120, "steps": 180}


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
        is_done = (args.out / f"{stage}.json").exists() and not args.again
        if stage not in args.skip and not is_done:
            runs[stage] = run(stage, args.out, cpu=args.cpu)
    found = {
        stage: json.loads(path.read_text())
        for stage in STAGES
        if (path := args.out / f"{stage}.json").exists()
    }
    text = page(found)
    (args.out / "RESULTS.md").write_text(text)
    print(text)
    wanted = [s for s in args.only or STAGES if s not in args.skip]
    lacking = [s for s in wanted if s not in found]
    if lacking:
        print(f"no result of: {', '.join(lacking)}; see the logs in {args.out}", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
