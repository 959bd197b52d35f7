"""A weight of distillation that changes over a run: `--kd_schedule linear:0.2..1`.

It multiplies all distillation terms of `--loss`, and leaves cross-entropy as it is. The first step
has the first number, the last step the second. Evaluation has neither: its figures can be compared.
"""

import math
import re
from typing import NamedTuple

from logitstore.errors import InputError

_WRITTEN = re.compile(r"\s*(\w+)\s*:\s*([^\s.]*\.?[^\s.]+)\s*\.\.\s*([^\s]+)\s*")
KINDS = ("linear", "cosine")


class Schedule(NamedTuple):
    """A way from one factor to another, along a line or half a cosine."""

    kind: str
    first: float
    last: float

    def at(self, step: int, steps: int) -> float:
        """Return the factor of step `step` of `steps`, counted from 0."""
        part = min(step / max(steps - 1, 1), 1.0)
        if self.kind == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.first + part * (self.last - self.first)


def parse_schedule(text: str) -> Schedule:
    """Parse `--kd_schedule`.

    Raises:
        InputError: It cannot be read so; says what is expected.
    """
    match = _WRITTEN.fullmatch(text)
    ends = [_number(match[2]), _number(match[3])] if match else []
    first, last = ends or (None, None)
    if match is None or match[1] not in KINDS or first is None or last is None or not first + last:
        raise InputError(
            f"--kd_schedule {text}: expected {' or '.join(KINDS)} and two numbers that are not "
            "negative, and not both 0. Write linear:0.2..1 or the like."
        )
    return Schedule(match[1], first, last)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
