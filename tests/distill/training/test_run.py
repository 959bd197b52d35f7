"""Facts of a run that are easily somebody else's."""

import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.slow
def test_peak_memory_is_the_programs_own_not_its_parents() -> None:
    held = np.ones(800_000_000 // 8)  # what a child would inherit as its peak
    code = "from logitstore.console.memory import peak_rss_bytes; print(peak_rss_bytes())"
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 50_000_000 < int(child.stdout) < held.nbytes
