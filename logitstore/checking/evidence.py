"""Weigh what a self-test has found: a proof, an error, or nothing to tell from.

Each asks whether something fits its own place better than another: the logits of a teacher before
a capture (:mod:`logitstore.capture.passes.self_test`), and before training the records of a store
(:mod:`distill.data.self_test`) and the logits of a student (:mod:`distill.training.first_batch`).
Whoever has learnt nothing fits both alike; whoever is sure and fits neither is doubted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FITS, CANNOT_TELL = "fits", "cannot tell"
#: Who gives so much to the most probable token, on average, has been trained.
SURE = 0.3
#: The least number of sequences, and the least mean over its standard error, of a clear gain.
LEAST_SEQUENCES, _CLEAR_ERRORS = 4, 4.0
#: The least mean gain of a sequence that is large, in nats a token.
_CLEAR_NATS = 0.5
#: Another place counts only if it is good: two that know nothing may differ, too.
_MOST_OF_OWN = 0.6
#: Tokens that cost less are known, whatever those of other sequences cost.
_COSTLY_NATS = 1.0


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


def is_clear(gains: Floats, least: float) -> bool:
    """Tell whether the mean of the gains is large, and far from what chance makes.

    Args:
        gains: Of each sequence, how much better the one fits than the other.
        least: The smallest mean that is large.
    """
    if len(gains) < LEAST_SEQUENCES:
        return False
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return bool(gains.mean() >= max(least, _CLEAR_ERRORS * error))


@dataclass(frozen=True)
class CostEvidence(Evidence):
    """What a test of logits has found: `own` and `other` are cross-entropies in nats a token."""

    def doubt_of(self, who: str, what: str) -> str:
        """Say what speaks for a mistake where nothing could be told; empty if nothing does.

        Args:
            who: Whose logits they are: `the student`.
            what: What they predict: `labels`.
        """
        if not self.is_doubtful or self.own is None or self.other is None:
            return ""
        if self.own < max(_COSTLY_NATS, _MOST_OF_OWN * self.other):
            return ""
        return (
            f"{who} is sure of what it says (its first token has {self.sure:.0%}), and the {what} "
            f"of {self.sequences} sequences cost it {self.own:.2f} nats, those of other sequences "
            f"{self.other:.2f}. Its tokenizer may be another model's"
        )


class Better(NamedTuple):
    """Another place whose logits predict the tokens clearly better; nats a token."""

    cost: float
    own: float
    name: str


def better_place(
    own: Sequence[Floats], others: Iterable[tuple[str, Sequence[Floats]]]
) -> Better | None:
    """Find the logits of another place that predict the tokens clearly better than their own.

    Args:
        own: Of each sequence, (tokens,) what each token costs at the logits of its own place, nats.
        others: The name of each other place, and the same there; NaN where there is no such place.

    Returns:
        The best of them, and what it costs at its own place; None: there is none.
    """
    found = []
    for name, costs in others:
        known = [~np.isnan(each) for each in costs]
        if is_clear(_gains(costs, own), _CLEAR_NATS):
            found.append(Better(_mean(costs, known), _mean(own, known), name))
    best = min(found, default=None)
    return best if best and best.cost < _MOST_OF_OWN * best.own else None


def fit(own: Sequence[Floats], other: Sequence[Floats]) -> str:
    """Tell whether tokens clearly cost less in their own place than in the other: `FITS` if so."""
    return FITS if is_clear(_gains(own, other), _CLEAR_NATS) else CANNOT_TELL


def _gains(these: Sequence[Floats], those: Sequence[Floats]) -> Floats:
    """Compute, for each sequence, how much less the first cost than the second, on average."""
    with np.errstate(invalid="ignore"):  # both may be without end
        gains = [b - a for a, b in zip(these, those, strict=True)]
    known = [each[np.isfinite(each)] for each in gains]
    return np.array([each.mean() for each in known if len(each)], np.float64)


def _mean(costs: Sequence[Floats], chosen: Sequence[npt.NDArray[np.bool_]]) -> float:
    return float(np.concatenate([c[which] for c, which in zip(costs, chosen, strict=True)]).mean())
