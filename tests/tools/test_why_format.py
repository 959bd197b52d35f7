"""The tool behind FORMAT.md's table runs, and what the table claims of our own shard holds."""

import json
import os
import subprocess
import sys

from tests.kit.paths import ROOT

TOOL = ROOT / "tools" / "why_format.py"


def test_every_flip_of_ours_raises_and_a_lost_chunk_is_never_zeros() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOOL), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows = {row["format"]: row for row in json.loads(done.stdout)["formats"]}
    ours = rows["logitstore shard"]
    assert ours["flips"]["silent"] == 0
    assert ours["missing_chunk"] == "raised"
    assert rows["plain zarr"]["missing_chunk"] == "zeros or other data, silently"
