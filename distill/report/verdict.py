"""Judge the differences of some seeds to a baseline, as surely as they allow and no surer.

Two students of one seed begin with the same weights and read the same rows in the same order, so
what is judged is the difference d of each seed, not two means. For n of them:

    interval        mean(d) ± t(n-1) std(d) / sqrt(n), Student's, 95 %
    better, worse   the interval leaves out zero
    tie             the whole interval lies within a margin below which no difference counts
    undecided       neither
    one seed        n = 1: how much seeds differ is not known, so nothing follows
    no shared seed  n = 0

With several contenders, one of twenty would leave out zero by chance alone. `comparisons` widens
all of their intervals (Bonferroni), so that 95 % is the chance that all of them are right.
"""

import math
import statistics
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

#: The chance that all intervals of a comparison hold.
CONFIDENCE = 0.95


class Verdict(NamedTuple):
    """What the differences of some seeds say.

    Attributes:
        word: ``better``, ``worse``, ``tie``, ``undecided``, ``one seed`` or ``no shared seed``.
        mean: The mean difference; None without a pair.
        half_width: Of its interval; None with fewer than two pairs.
        pairs: How many seeds both have.
        agree: Whether all differences have one sign. It is no proof: three seeds agree by chance
            in one of four losses without any effect.
    """

    word: str
    mean: float | None
    half_width: float | None
    pairs: int
    agree: bool

    @property
    def is_sure(self) -> bool:
        """Tell whether it is better, worse or a tie, beyond the noise of seeds."""
        return self.word in ("better", "worse", "tie")


def judge(
    differences: Sequence[float],
    *,
    lower_is_better: bool = True,
    margin: float = 0.0,
    comparisons: int = 1,
) -> Verdict:
    """Judge the differences of a contender to the baseline, one a seed.

    Args:
        differences: Contender less baseline, of each seed that both have.
        lower_is_better: Which sign is good.
        margin: The largest difference that does not count; in the unit of the differences.
        comparisons: How many contenders are judged at once.
    """
    if not differences:
        return Verdict("no shared seed", None, None, 0, agree=False)
    mean, width = statistics.fmean(differences), half_width(differences, comparisons)
    agree = 0 not in differences and len({d > 0 for d in differences}) == 1
    if width is None:
        word = "one seed"
    elif abs(mean) + width <= margin:
        word = "tie"
    elif abs(mean) > width:
        word = "better" if (mean < 0) == lower_is_better else "worse"
    else:
        word = "tie" if mean == width == 0 else "undecided"
    return Verdict(word, mean, width, len(differences), agree)


def half_width(differences: Sequence[float], comparisons: int = 1) -> float | None:
    """Compute the half width of the interval around their mean; None for fewer than two.

    Args:
        differences: One a seed.
        comparisons: How many such intervals are to hold together.
    """
    n = len(differences)
    if n < 2:
        return None
    beyond = (1 - CONFIDENCE) / max(comparisons, 1)
    return t_quantile(1 - beyond / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)


@cache
def t_quantile(share: float, freedom: int) -> float:
    """Find the value that Student's t is below with this probability, by bisection.

    Args:
        share: From 0.5 to less than 1.
        freedom: Degrees of freedom, 1 or more.
    """
    low, high = 0.0, 1.0
    while _two_sided(high, freedom) < 2 * share - 1:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _two_sided(middle, freedom) < 2 * share - 1 else (low, middle)
    return high


def _two_sided(t: float, freedom: int) -> float:
    """Compute P(|T| < t); a finite sum for whole degrees (Abramowitz and Stegun, 26.7.3-4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd, cosine = freedom % 2, math.cos(angle)
    term, total = (cosine if odd else 1.0), 0.0
    for i in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (i - 1) / i
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
