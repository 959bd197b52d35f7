"""Measure how a teacher's probability is spread, and advise which k and epsilon to choose.

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
from logitstore.console.counts import counted

#: Entries looked at where the teacher can be asked again; else as many as the capture keeps.
MOST_ENTRIES = 256
_BOUNDS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2)
#: Tried in this order: 0.01 moves ULD by 0.02 at most, of the 2 that it can be.
_PREFERRED_BOUNDS = (0.01, 0.02, 0.05, 0.1)
#: Part of the positions at which a recommended bound is met.
_MET_SHARE = 0.95
_DEFAULT_K, _DEFAULT_DRAWS = 64, 50


@dataclass(frozen=True)
class Profile:
    """Summarises the teacher's distributions over some positions.

    Attributes:
        positions: Number of positions.
        mass: By k, the mean probability in the k most probable tokens.
        entries: By epsilon, the mean number of entries that leave epsilon or less outside; where
            not even all entries looked at do, all of them count.
        unmet: By epsilon, the fraction of positions where not even all entries do.
        needed: By epsilon, the smallest power of two entries that is enough at 95 % of the
            positions; None if not even all are.
    """

    positions: int
    mass: dict[int, float]
    entries: dict[float, float]
    unmet: dict[float, float]
    needed: dict[float, int | None]

    def recommended(self) -> dict[str, Any] | None:
        """Choose k, epsilon and draws for this teacher and these texts.

        Returns:
            As JSON: `top_k`, `max_tail` (or None) and `draws` as the flags of that name take them,
            the `entries_per_token` that they keep, and `why`. None if fewer entries were looked at
            than the default of `--top-k`.
        """
        most, held = max(self.mass.items(), default=(0, 0.0))
        if most < _DEFAULT_K:
            return None
        for bound in _PREFERRED_BOUNDS:
            if (k := self.needed[bound]) is not None:
                why = (
                    f"{k} entries hold all but {bound:g} of the probability at 95 % of the tokens "
                    f"(at {1 - self.unmet[bound]:.0%} {most} do), and with the bound "
                    f"{self.entries[bound]:.1f} a token are kept on average. That is enough for "
                    "every loss, uld too; losses that compare tokens by id need fewer"
                )
                return _advice(k, bound, 0, self.entries[bound], why)
        why = (
            f"even {most} entries hold only {held:.0%} of this teacher's probability, so a bound "
            f"would keep them all and not be met. {_DEFAULT_K} hold {self.mass[_DEFAULT_K]:.0%}; "
            "draws stand for the rest, right on average (sampled_kl), and uld says how far off it "
            "can be"
        )
        return _advice(_DEFAULT_K, None, _DEFAULT_DRAWS, float(_DEFAULT_K), why)

    def advice_text(self) -> str:
        """Write the recommended flags and the reason as a line; empty if there are none."""
        if (advice := self.recommended()) is None:
            return ""
        flags = f"--top-k {advice['top_k']}"
        flags += "" if advice["max_tail"] is None else f" --max-tail {advice['max_tail']:g}"
        flags += f" --draws {advice['draws']}" if advice["draws"] else ""
        return f"recommended: {flags}: {advice['why']}"

    def facts(self) -> dict[str, Any]:
        """Return profile and advice as JSON."""
        return {
            "positions": self.positions,
            "mass": {str(k): mass for k, mass in self.mass.items()},
            "max_tail": {
                str(bound): {"entries_per_token": self.entries[bound], "unmet": self.unmet[bound]}
                for bound in self.entries
            },
            "recommended": self.recommended(),
        }

    def __str__(self) -> str:
        masses = " · ".join(f"{k}: {mass:.1%}" for k, mass in self.mass.items())
        bounds = " · ".join(
            f"{bound:g}: {self.entries[bound]:.1f}"
            + (f" (too few at {self.unmet[bound]:.0%})" if self.unmet[bound] >= 0.005 else "")
            for bound in self.entries
        )
        return (
            f"probability that the k most probable tokens hold, on average over "
            f"{counted(self.positions, 'token')}: k = {masses}\n"
            f"entries a token with --max-tail {bounds}"
        )


def profile_of(results: Sequence[HeadResult]) -> Profile:
    """Compute the profile of distributions kept with a fixed number of entries.

    Rows that are not finite are left out.
    """
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
        enough = (k for k in powers if float(met_nK[:, k - 1].double().mean()) >= _MET_SHARE)
        needed[bound] = next(enough, None)
    mass = {k: float(sums_nK[:, k - 1].mean()) for k in powers}
    return Profile(n, mass, entries, unmet, needed)


def _advice(
    top_k: int, max_tail: float | None, draws: int, entries_per_token: float, why: str
) -> dict[str, Any]:
    return {
        "top_k": top_k,
        "max_tail": max_tail,
        "draws": draws,
        "entries_per_token": entries_per_token,
        "why": why,
    }
