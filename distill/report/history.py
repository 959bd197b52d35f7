"""The curves of a run, from the `trainer_state.json` that Trainer leaves in a student's folder.

A folder may be anybody's, and a run may have logged a million times: what is read is bounded, what
is no number is left out, and a curve is thinned to the points that a page can show.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.curves import series
from distill.report.metrics import is_number
from logitstore.storage.files import read_file

STATE_FILE = "trainer_state.json"
_MAX_BYTES = 64 * 1024 * 1024

#: (step, value), steps rising.
Curve = list[tuple[int, float]]


def read_curves(place: Path) -> dict[str, Curve]:
    """Read every logged loss of a run by its name; empty where none can be read.

    Args:
        place: A student's folder, or a file in it.
    """
    folder = place.parent if place.is_file() else place
    try:
        state = json.loads(read_file(folder / STATE_FILE, _MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}  # a copied results.json has no state beside it: that is no fault
    logged = state.get("log_history") if isinstance(state, dict) else None
    return {
        name: sorted(dict(points).items())  # a resumed run may have logged a step twice
        for name, points in series(_numbers(logged if isinstance(logged, list) else [])).items()
    }


def _numbers(logged: Iterable[Any]) -> list[Mapping[str, Any]]:
    """Keep the finite numbers of each entry that names its step."""
    kept = (
        {name: value for name, value in entry.items() if is_number(value)}
        for entry in logged
        if isinstance(entry, dict)
    )
    return [entry for entry in kept if "step" in entry]


def together(curves: Sequence[Curve], most: int) -> list[tuple[int, float, float, float]]:
    """Merge the runs of one contender into one curve of at most `most` points.

    Neighbouring steps share a point, which stands at the last of them.

    Returns:
        (step, mean, least, most) of each point, over the runs that logged it; each run's own value
        is its mean over the steps of the point.
    """
    steps = sorted({step for curve in curves for step, _ in curve})
    width = max(1, -(-len(steps) // most))
    point_of = {step: i // width for i, step in enumerate(steps)}
    values: dict[int, list[float]] = {}
    for curve in curves:
        own: dict[int, list[float]] = {}
        for step, value in curve:
            own.setdefault(point_of[step], []).append(value)
        for point, each in own.items():
            values.setdefault(point, []).append(math.fsum(each) / len(each))
    last = {point: step for step, point in point_of.items()}
    return [
        (last[point], math.fsum(each) / len(each), min(each), max(each))
        for point, each in sorted(values.items())
    ]
