"""Summarise rows of full logits: all that a store keeps of a teacher's distribution.

Everything is exact over the whole vocabulary, in float32, in as few passes over it as can be: the
passes are what this costs beside the matrix product. One top-k finds the entries E and, as the
entry after the last, the largest logit r of the rest R. With y = z - r:

    log Z              = log(sum_E e^(z - z_1) + e^(r - z_1) sum_R e^y) + z_1
    tail               = log(sum_R e^y) + r - log Z
    entropy            = - sum_E p log p - e^(r - log Z) sum_R e^y y - (r - log Z) e^tail
    log-normaliser, t  = log sum e^((z - z_1) / t) + (z_1 - log Z) / t

So one exponential serves log Z, tail and entropy; the tail is never below what float32 can hold,
for the largest y of the rest is 0; and each sum is of terms of one sign, so nothing cancels, also
where the teacher is sure (1 - sum_E p would be noise there). The definition in float64 is in
tests/logitstore/capture/test_summary.py.

Shape legend: V = vocabulary, n = positions, K = entries, T = extra temperatures, S = draws,
W = random words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from logitstore.capture.teacher.draws import Draws, draw
from logitstore.records import STD_FLOOR


@dataclass(frozen=True)
class HeadSettings:
    """Says what to keep of a distribution.

    Attributes:
        top_k: Entries of a record at most.
        max_tail: Keep the fewest entries that leave no more than this outside; None: always top_k.
        temperatures: Extra temperatures to store the log-normaliser for.
        logit_std: Also the standard deviation of the logits, and the log-normaliser at it.
        draws: Draws, with replacement, from what lies outside the entries.
        seed: Seed of the draws.
    """

    top_k: int
    max_tail: float | None = None
    temperatures: tuple[float, ...] = ()
    logit_std: bool = False
    draws: int = 0
    seed: int = 0


@dataclass(frozen=True)
class HeadResult:
    """Holds summaries by position, float32, entries most probable first; None if not asked for."""

    token_logprob: Tensor  # (n,)
    entry_logprobs: Tensor  # (n, K)
    entry_ids: Tensor  # (n, K) int32
    entry_count: Tensor  # (n,)
    tail_logmass: Tensor  # (n,)
    entropy: Tensor  # (n,)
    lognorm: Tensor | None = None  # (n, T)
    logit_std: Tensor | None = None  # (n,)
    lognorm_std: Tensor | None = None  # (n,) at temperature logit_std + STD_FLOOR
    sample_ids: Tensor | None = None  # (n, S) int32, distinct draws, ascending
    sample_counts: Tensor | None = None  # (n, S) int32
    draw_count: Tensor | None = None  # (n,) distinct draws

    @classmethod
    def on_host(cls, parts: "Sequence[HeadResult]") -> Self:
        """Join one or more parts in order, and move them to the CPU."""
        joined: dict[str, Any] = {}
        for field in fields(cls):
            column = [getattr(part, field.name) for part in parts]
            joined[field.name] = None if column[0] is None else torch.cat(column).cpu()
        return cls(**joined)


def summarise(
    logits_nV: Tensor,
    targets_n: Tensor,
    settings: HeadSettings,
    words_nW: Tensor | None = None,
) -> HeadResult:
    """Summarise some positions from their full logits.

    Args:
        logits_nV: Logits in the precision of the model.
        targets_n: The tokens that they predict.
        settings: What to keep.
        words_nW: Random words of each position, two for each draw, if there are draws.
    """
    return summarise_(logits_nV.clone(), targets_n, settings, words_nW)


def summarise_(
    logits_nV: Tensor,
    targets_n: Tensor,
    settings: HeadSettings,
    words_nW: Tensor | None = None,
    work_nV: Tensor | None = None,
) -> HeadResult:
    """Summarise without a copy of the logits: if they are float32, they are overwritten.

    Args:
        logits_nV, targets_n, settings, words_nW: As for `summarise`.
        work_nV: float32 memory of the same shape to work in; default: allocated here.
    """
    rows = _Rows(logits_nV.float(), min(settings.top_k, logits_nV.shape[1]), work_nV)
    entries_nK, tail_n = rows.entries_nK, rows.tail_n
    count_n = torch.full_like(targets_n, entries_nK.shape[1])
    if settings.max_tail is not None:
        count_n, tail_n = _fewest(entries_nK, tail_n, settings.max_tail)
    lognorms = [rows.lognorm(temperature) for temperature in settings.temperatures]
    std_n = rows.std() if settings.logit_std else None
    lognorm_std_n = None if std_n is None else rows.lognorm((std_n + STD_FLOOR)[:, None])
    token_n = rows.logprob(targets_n)
    drawn = None if words_nW is None else rows.draw(count_n, tail_n, words_nW)  # uses them up
    return HeadResult(
        token_logprob=token_n,
        entry_logprobs=entries_nK,
        entry_ids=rows.ids_nK.int(),
        entry_count=count_n,
        tail_logmass=tail_n,
        entropy=rows.entropy_n,
        lognorm=torch.stack(lognorms, 1) if lognorms else None,
        logit_std=std_n,
        lognorm_std=lognorm_std_n,
        sample_ids=None if drawn is None else drawn.ids,
        sample_counts=None if drawn is None else drawn.counts,
        draw_count=None if drawn is None else drawn.distinct,
    )


class _Rows:
    """Computes all summaries of some rows from one exponential; see the module's docstring.

    Args:
        z_nV: float32; becomes y in place.
        count: Entries K.
        work_nV: Memory for the exponentials.

    Attributes:
        ids_nK, entries_nK: The entries' tokens and log-probabilities, most probable first.
        tail_n, entropy_n: Log mass outside the entries, and entropy of the whole distribution.
    """

    def __init__(self, z_nV: Tensor, count: int, work_nV: Tensor | None) -> None:
        top, ids_nK = z_nV.topk(min(count + 1, z_nV.shape[1]), dim=-1)
        first, rest = top[:, :1], top[:, -1:]
        # With nothing outside, or only what the teacher excludes, any offset will do.
        rest = torch.where((rest == -torch.inf) | (count == z_nV.shape[1]), first, rest)
        self.ids_nK = ids_nK[:, :count]
        self._first_n1 = first - rest  # relative to rest, as y is, and log Z
        self._y_nV = z_nV.sub_(rest)
        self._work_nV = torch.exp(self._y_nV, out=work_nV).scatter_(1, self.ids_nK, 0.0)
        rest_mass_n1 = self._work_nV.sum(-1, keepdim=True)
        head_nK = top[:, :count] - first
        total_n1 = head_nK.exp().sum(-1, keepdim=True) + rest_mass_n1 * (-self._first_n1).exp()
        self._logz_n1 = total_n1.log() + self._first_n1
        self.entries_nK = head_nK - total_n1.log()
        self.tail_n = (rest_mass_n1.log() - self._logz_n1).squeeze(1)
        self.entropy_n = self._entropy()

    def _entropy(self) -> Tensor:
        # What is excluded has y = -inf and no mass, which together are no number, and no entropy.
        sum_n = self._work_nV.mul_(self._y_nV).nan_to_num_(nan=0.0).sum(-1)
        logz_n = self._logz_n1.squeeze(1)
        head_n = torch.special.entr(self.entries_nK.exp()).sum(-1)
        entropy_n: Tensor = head_n + logz_n * self.tail_n.exp() - sum_n * (-logz_n).exp()
        return entropy_n

    def logprob(self, targets_n: Tensor) -> Tensor:
        """Return the log-probability of one token a row."""
        return (self._y_nV.gather(1, targets_n[:, None]) - self._logz_n1).squeeze(1)

    def std(self) -> Tensor:
        """Return the standard deviation of the logits; NaN where the teacher excludes tokens."""
        return self._y_nV.std(-1)

    def lognorm(self, temperature: float | Tensor) -> Tensor:
        """Return the log-normaliser at a temperature, or at one for each row, (n, 1)."""
        torch.sub(self._y_nV, self._first_n1, out=self._work_nV)
        sum_n1 = self._work_nV.div_(temperature).exp_().sum(-1, keepdim=True)
        offset_n1: Tensor = (self._first_n1 - self._logz_n1) / temperature
        return (sum_n1.log() + offset_n1).squeeze(1)

    def draw(self, count_n: Tensor, tail_n: Tensor, words_nW: Tensor) -> Draws:
        """Draw from what lies outside the first `count_n` entries; overwrites the logits."""
        y_nK = self.entries_nK + self._logz_n1
        is_left_nK = torch.arange(y_nK.shape[1], device=y_nK.device) >= count_n[:, None]
        self._y_nV.scatter_(1, self.ids_nK, y_nK.masked_fill(~is_left_nK, -torch.inf))
        return draw(self._y_nV, tail_n + self._logz_n1.squeeze(1), words_nW)


def _fewest(entries_nK: Tensor, tail_n: Tensor, max_tail: float) -> tuple[Tensor, Tensor]:
    """Find the fewest entries that leave `max_tail` or less (else all), and the tail they leave."""
    # left[:, k] = log mass outside the first k + 1 entries, summed from the small end.
    parts = torch.cat([entries_nK[:, 1:], tail_n[:, None]], 1)
    left = parts.flip(1).logcumsumexp(1).flip(1)
    within = left.exp() <= max_tail
    within[:, -1] = True
    keep = within.int().argmax(1)
    return keep + 1, left.gather(1, keep[:, None]).squeeze(1)
