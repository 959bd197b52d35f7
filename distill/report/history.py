"""The curves of a run, from the `trainer_state.json` that Trainer leaves in a student's folder.

A folder may be anybody's, and a run may have logged a million times: what is read is bounded, what
is no number is left out, and a curve is thinned to the points that a page can show.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.report.curves import series
from distill.report.metrics import is_number
from logitstore.storage.files import read_file

STATE_FILE = "trainer_state.json"
_MAX_BYTES = 64 * 1024 * 1024

#: (step, value), steps rising.
Curve = list[tuple[int, float]]


class Point(NamedTuple):
    """What the runs of a contender logged in a group of neighbouring steps.

    Attributes:
        group: Its number.
        first: The first of the steps that were logged.
        step: The last of them, where the point stands.
        mean: Over the runs.
        least: Of the runs.
        most: Of the runs.
    """

    group: int
    first: int
    step: int
    mean: float
    least: float
    most: float


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


def together(contenders: Sequence[Sequence[Curve]], most: int) -> list[list[Point]]:
    """Merge the runs of each contender into one curve of at most `most` points.

    Steps are grouped for all contenders alike, so that those who logged at the same steps have
    their points at the same steps, too.

    Args:
        contenders: Of each its runs.
        most: Of groups. Neighbouring steps share one.

    Returns:
        Of each contender its points, groups rising; each run's own value is its mean over the steps
        of the group.
    """
    steps = sorted({step for runs in contenders for curve in runs for step, _ in curve})
    width = max(1, -(-len(steps) // most))
    group_of = {step: i // width for i, step in enumerate(steps)}
    return [_merged(runs, group_of) for runs in contenders]


def _merged(runs: Sequence[Curve], group_of: Mapping[int, int]) -> list[Point]:
    values: dict[int, list[float]] = {}
    steps: dict[int, list[int]] = {}
    for curve in runs:
        own: dict[int, list[float]] = {}
        for step, value in curve:
            own.setdefault(group_of[step], []).append(value)
            steps.setdefault(group_of[step], []).append(step)
        for group, each in own.items():
            values.setdefault(group, []).append(math.fsum(each) / len(each))
    return [
        Point(
            group,
            min(steps[group]),
            max(steps[group]),
            math.fsum(each) / len(each),
            min(each),
            max(each),
        )
        for group, each in sorted(values.items())
    ]
