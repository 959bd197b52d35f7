"""How a teacher's probability is spread: what k entries hold, and which k and epsilon to choose.

A peaked teacher has nearly all of its probability in a few tokens: then a bound on what is left
outside (`--max-tail`) costs few entries where it is sure and more where it is not. Of a flat one
even hundreds of entries leave much outside: a bound keeps them all and is not met, and what
represents the rest is draws.

Shape legend: n = positions, K = entries looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from logitstore.capture.teacher.summary import HeadResult

#: Looked at where the teacher can be asked anew; of what a capture keeps, as many as it keeps.
MOST_ENTRIES = 256
_BOUNDS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2)
#: Tried in this order: 0.01 moves ULD by 0.02 at most, of the 2 that it can be.
_PREFERRED = (0.01, 0.02, 0.05, 0.1)
_MOST_POSITIONS = 0.95  # that a bound should be met at
_DEFAULT_K, _DEFAULT_DRAWS = 64, 50


@dataclass(frozen=True)
class Recommended:
    """What to give to `--top-k`, `--max-tail` and `--draws`, and why."""

    top_k: int
    max_tail: float | None
    draws: int
    entries_per_token: float
    why: str

    def __str__(self) -> str:
        flags = f"--top-k {self.top_k}"
        flags += "" if self.max_tail is None else f" --max-tail {self.max_tail:g}"
        flags += f" --draws {self.draws}" if self.draws else ""
        return f"recommended: {flags}: {self.why}"


@dataclass(frozen=True)
class Profile:
    """Over some positions.

    Attributes:
        positions: How many.
        mass: By k, how much of its probability the teacher has in its k likeliest tokens.
        entries: By epsilon, the mean of the fewest entries that leave no more outside, or of all
            that were looked at where even those leave more.
        unmet: By epsilon, at which fraction of the positions they do.
        needed: By epsilon, the smallest power of two entries that is enough at 95 % of the
            positions; None if all are not.
    """

    positions: int
    mass: dict[int, float]
    entries: dict[float, float]
    unmet: dict[float, float]
    needed: dict[float, int | None]

    def recommended(self) -> Recommended | None:
        """A k and an epsilon for this teacher and these texts; None if too few were looked at."""
        most, held = max(self.mass.items(), default=(0, 0.0))
        if most < _DEFAULT_K:
            return None
        for bound in _PREFERRED:
            k = self.needed[bound]
            if k is not None:
                met = 1 - self.unmet[bound]
                why = (
                    f"the teacher is peaked: {k} entries leave {bound:g} or less outside at 95 % "
                    f"of the tokens (at {met:.0%} {most} do), and {self.entries[bound]:.1f} a "
                    "token are enough on average"
                )
                return Recommended(k, bound, 0, self.entries[bound], why)
        why = (
            f"the teacher is flat: even {most} entries hold only {held:.0%} of its probability, so "
            f"a bound would keep them all and not be met. {_DEFAULT_K} hold "
            f"{self.mass[_DEFAULT_K]:.0%}; draws stand for the rest without bias (sampled_kl), and "
            "uld bounds what it misses"
        )
        return Recommended(_DEFAULT_K, None, _DEFAULT_DRAWS, float(_DEFAULT_K), why)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        said = self.recommended()
        return {
            "positions": self.positions,
            "mass": {str(k): mass for k, mass in self.mass.items()},
            "max_tail": {
                str(bound): {"entries_per_token": self.entries[bound], "unmet": self.unmet[bound]}
                for bound in self.entries
            },
            "recommended": None if said is None else vars(said),
        }

    def __str__(self) -> str:
        masses = " · ".join(f"{k} {mass:.1%}" for k, mass in self.mass.items())
        bounds = " · ".join(
            f"{bound:g} {self.entries[bound]:.1f}"
            + (f" (not met at {self.unmet[bound]:.0%})" if self.unmet[bound] >= 0.005 else "")
            for bound in self.entries
        )
        return (
            f"probability in the k likeliest tokens, over {self.positions:,} of them: {masses}\n"
            f"entries a token for --max-tail: {bounds}"
        )


def profile_of(results: Sequence[HeadResult]) -> Profile:
    """Of what was kept with a fixed number of entries; rows that are not finite are left out."""
    logprobs_nK = torch.cat([r.entry_logprobs for r in results])
    sums_nK = logprobs_nK[logprobs_nK.isfinite().any(1)].double().exp().cumsum(1)
    n, most = sums_nK.shape
    if n == 0 or most == 0:
        return Profile(n, {}, {}, {}, {})
    powers = sorted({*(2**i for i in range(most.bit_length())), most})
    entries, unmet, needed = {}, {}, {}
    for bound in _BOUNDS:
        # float32 sums are one to within 1e-6, far below any bound here
        met_nK = sums_nK >= 1 - bound
        first_n = torch.where(met_nK[:, -1], met_nK.int().argmax(1) + 1, most)
        entries[bound] = float(first_n.double().mean())
        unmet[bound] = 1 - float(met_nK[:, -1].double().mean())
        enough = (k for k in powers if float(met_nK[:, k - 1].double().mean()) >= _MOST_POSITIONS)
        needed[bound] = next(enough, None)
    mass = {k: float(sums_nK[:, k - 1].mean()) for k in powers}
    return Profile(n, mass, entries, unmet, needed)
