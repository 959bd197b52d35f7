"""Rows of logits brought to one scale, z / (sigma + 1e-4): at columns of sequences, or the largest.

Let sigma be the standard deviation over the vocabulary, a = 1 / (sigma + 1e-4), x the logits minus
their mean (which no softmax depends on), P = softmax(a x), g the slopes of the log-probabilities at
some ids, and G their sum. Then the gradient has two parts, the second through sigma:

    d / d z_j  =  a (g at j - G P_j)  -  a^2 (sum_i g_i x_i - G E_P[x]) x_j / ((V - 1) sigma)

The softmax of the unscaled logits is computed beside it, for the other answers about the same rows.
Neither softmax is kept. On a CPU a few rows at a time are read from memory once, everything is
summed over them while they are in its caches, and their exponentials are made again for the
gradient: a new [rows, vocabulary] tensor would cost more there, in fresh pages alone.

Shape legend: c = rows; b = rows of a block; V = vocabulary; S = sequences; k = columns of the
ranking; K = ids of all kinds.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.head.query import Ranking
from logitstore.records import STD_FLOOR

#: Logits of a block on a CPU: 4 MiB in float32, which its last cache holds beside two more like it.
BLOCK_LOGITS = 2**20


class _Block(NamedTuple):
    """A few of the rows, and memory of their size for intermediate results."""

    own: slice
    x_bV: Tensor
    below_bV: Tensor
    e_bV: Tensor


class ScaledRows:
    """A few rows of logits, brought to one scale.

    Args:
        logits_cV: float32 or float64. Their mean is subtracted in place.
        ranking: The sequence that each row belongs to; None: no columns are wanted.
        mass_SV: Sums to which the probability of each column is added, for each sequence over its
            rows. None if they are not wanted.

    Attributes:
        scale_c2: a, and the log-normaliser of a z: a log-probability is a z minus that.
        log_z_c: Log-normaliser of the unscaled logits without their mean.
    """

    def __init__(
        self, logits_cV: Tensor, ranking: Ranking | None, mass_SV: Tensor | None = None
    ) -> None:
        self._x_cV, self._ranking = logits_cV, ranking
        self._ids: list[Tensor] = []  # of each answer, in the order in which they were asked for
        sequences = [] if mass_SV is None or ranking is None else ranking.sequence_N.tolist()
        read = [self._read(block, mass_SV, sequences[block.own]) for block in self._blocks()]
        middle_c, self._std_c, self._top_c, sum_c, scaled_sum_c, self._mean_c = (
            torch.cat(parts) for parts in zip(*read, strict=True)
        )
        self._a_c = 1 / (self._std_c + STD_FLOOR)
        self.log_z_c = sum_c.log() + self._top_c
        self._scaled_log_z_c = scaled_sum_c.log() + self._top_c * self._a_c
        log_z_c = self._scaled_log_z_c + middle_c * self._a_c
        self.scale_c2 = torch.stack([self._a_c, log_z_c], 1)

    def _blocks(self) -> Iterator["_Block"]:
        rows, width = self._x_cV.shape
        # A GPU would wait for the many small steps.
        size = max(1, BLOCK_LOGITS // width) if self._x_cV.device.type == "cpu" else max(1, rows)
        below_cV, e_cV = (torch.empty_like(self._x_cV[:size]) for _ in range(2))
        for start in range(0, max(1, rows), size):  # at least one block, even if it is empty
            x_bV = self._x_cV[start : start + size]
            own = slice(start, start + len(x_bV))
            yield _Block(own, x_bV, below_cV[: len(x_bV)], e_cV[: len(x_bV)])

    def _read(
        self, block: "_Block", mass_SV: Tensor | None, sequences: list[int]
    ) -> tuple[Tensor, ...]:
        """Centre a block, and add its probabilities to the mass of its sequences.

        Returns:
            Each (b,): mean, sigma, largest x, sum of e^(x - largest), of e^(a (x - largest)), and
            E_P[x].
        """
        _, x_bV, below_bV, e_bV = block
        middle_b1 = x_bV.mean(-1, keepdim=True)
        x_bV.sub_(middle_b1)
        norm_b = torch.linalg.vector_norm(x_bV, dim=-1)
        least = torch.finfo(x_bV.dtype).tiny ** 0.5
        std_b = (norm_b / max(1, x_bV.shape[1] - 1) ** 0.5).clamp(min=least)
        top_b1 = x_bV.amax(-1, keepdim=True)
        torch.sub(x_bV, top_b1, out=below_bV)
        torch.mul(below_bV, (1 / (std_b + STD_FLOOR))[:, None], out=e_bV).exp_()
        sum_b = e_bV.sum(-1)
        if mass_SV is not None and sequences:
            first, last = min(sequences), max(sequences)
            own_b = torch.tensor([s - first for s in sequences], device=x_bV.device)
            share_Sb = x_bV.new_zeros(last - first + 1, len(own_b))
            share_Sb[own_b, torch.arange(len(own_b), device=x_bV.device)] = 1 / sum_b
            mass_SV[first : last + 1].addmm_(share_Sb, e_bV)
        plain_b = below_bV.exp_().sum(-1)
        mean_b = e_bV.mul_(x_bV).sum(-1) / sum_b
        return middle_b1.flatten(), std_b, top_b1.flatten(), plain_b, sum_b, mean_b

    def at_columns(self, columns_Sk: Tensor) -> Tensor:
        """Compute (c, k) at the columns chosen for the sequences; -1 is padding, whose is -inf."""
        assert self._ranking is not None
        ids_ck = columns_Sk[self._ranking.sequence_N]
        self._ids.append(ids_ck.clamp(min=0))
        return self._logprobs(self._ids[-1]).masked_fill(ids_ck < 0, -torch.inf)

    def largest(self, k: int) -> Tensor:
        """Compute (c, k) the k largest, in order; -inf beyond V."""
        ids_ck = self._x_cV.topk(min(k, self._x_cV.shape[1])).indices
        self._ids.append(ids_ck)
        missing = (0, k - ids_ck.shape[1])
        return nn.functional.pad(self._logprobs(ids_ck), missing, value=-torch.inf)

    def _logprobs(self, ids_ck: Tensor) -> Tensor:
        x_ck = self._x_cV.gather(1, ids_ck)
        return x_ck * self._a_c[:, None] - self._scaled_log_z_c[:, None]

    def slope(self, total_c: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Compute (c, V) the gradient with respect to the logits, in their place.

        Args:
            total_c: Sum of the slopes of all answers that `log_z_c` is subtracted from. The caller
                adds those slopes at their own ids.
            slopes: (c, k) those of each answer, in the order in which they were asked for; 0 in
                padding.
        """
        ids_cK = torch.cat(self._ids, 1)
        slope_cK = torch.cat(
            [each[:, : ids.shape[1]] for each, ids in zip(slopes, self._ids, strict=True)], 1
        )
        x_cK = self._x_cV.gather(1, ids_cK)
        columns_c = slope_cK.sum(-1)
        along_c = torch.linalg.vecdot(slope_cK, x_cK) - columns_c * self._mean_c
        freedom = max(1, self._x_cV.shape[1] - 1)
        through_std_c1 = (-self._a_c.square() * along_c / (freedom * self._std_c))[:, None]
        # e^(x - top) times these
        plain_c1 = (-total_c * (self._top_c - self.log_z_c).exp())[:, None]
        scaled_c = (self._top_c * self._a_c - self._scaled_log_z_c).exp()
        scaled_c1 = (-self._a_c * columns_c * scaled_c)[:, None]
        for own, x_bV, below_bV, e_bV in self._blocks():
            torch.sub(x_bV, self._top_c[own, None], out=below_bV)
            torch.mul(below_bV, self._a_c[own, None], out=e_bV).exp_()
            x_bV.mul_(through_std_c1[own])
            # In two steps, since an addcmul that broadcasts twice takes three times as long.
            x_bV.addcmul_(e_bV, scaled_c1[own])
            x_bV.addcmul_(below_bV.exp_(), plain_c1[own])
        return self._x_cV.scatter_add_(1, ids_cK, slope_cK * self._a_c[:, None])
