"""Measure one thing in a process of its own, and fit how it grows with size."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: What every measured process begins with: how to tell what something took, in memory and in
#: seconds of a processor, which other programs on the machine disturb little.
_BEGIN = """
import json, sys, time
import numpy as np
import logitstore
from logitstore.store import open_store
from tools.benchmark import PeakMemory
def took(call):
    memory, began = PeakMemory(), time.process_time()
    found = call()
    return found, {"seconds": time.process_time() - began, "bytes": memory.bytes_more()}
"""
Figures = Mapping[str, float]


def measured(code: str, *arguments: object) -> dict[str, Any]:
    """Run code in a process of its own; it prints what it measured as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit values to a power of the size: 0 is constant, 1 linear, 2 quadratic."""
    if len(sizes) < 2:
        return 0.0
    slope, _ = np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)
    return float(slope)


def at_size(sizes: Sequence[float], values: Sequence[float], wanted: float) -> float:
    """Extrapolate to a size along a straight line through what was measured.

    A power that is fitted over fixed costs and caches would promise too little.
    """
    if len(sizes) < 2:
        return float(values[-1])
    slope, start = np.polyfit(sizes, values, 1, w=1 / np.asarray(sizes))
    return float(max(start, 0) + slope * wanted)
