"""Weigh what a test before the first step has found: a proof, an error, or nothing to tell from.

Both tests ask whether something fits its own place better than another: the records of a teacher
(:mod:`distill.data.self_test`), and the logits of a student (:mod:`distill.training.first_batch`).
Whoever has learnt nothing fits both alike; whoever is sure and fits neither is doubted.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FITS, CANNOT_TELL = "fits", "cannot tell"
#: Who gives so much to the most probable token, on average, has been trained.
SURE = 0.3
#: The least number of sequences, and the least mean over its standard error, of a clear gain.
LEAST_SEQUENCES, _CLEAR_ERRORS = 4, 4.0


@dataclass(frozen=True)
class Evidence:
    """What a test has found.

    Attributes:
        own: How well the labels of their own place fit; None: there was nothing to compare.
        other: How well those of another row fit.
        sure: Mean probability of the most probable token.
        outcome: `FITS`, or `CANNOT_TELL`.
        sequences: How many were read.
    """

    own: float | None = None
    other: float | None = None
    sure: float | None = None
    outcome: str = CANNOT_TELL
    sequences: int = 0

    @property
    def is_doubtful(self) -> bool:
        """Whether who is asked is sure of something, and not of the labels."""
        is_told = self.outcome == FITS or self.own is None or self.other is None
        is_sure = self.sure is not None and self.sure >= SURE
        return is_sure and not is_told and self.sequences >= LEAST_SEQUENCES

    def facts(self) -> dict[str, Any]:
        """Describe it as JSON."""
        return asdict(self)


def is_clear(gains: npt.NDArray[np.float64], least: float) -> bool:
    """Tell whether the mean of the gains is large, and far from what chance makes.

    Args:
        gains: Of each sequence, how much better the one fits than the other.
        least: The smallest mean that is large.
    """
    if len(gains) < LEAST_SEQUENCES:
        return False
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return bool(gains.mean() >= max(least, _CLEAR_ERRORS * error))
