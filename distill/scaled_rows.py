"""Rows of logits brought to one scale, z / (sigma + 1e-4), for what ranks columns over sequences.

With sigma the standard deviation over the vocabulary, a = 1 / (sigma + 1e-4), x the logits less
their mean (a softmax does not feel it), P = softmax(a x), and g the slopes of the log-probabilities
at some columns, G their sum, the gradient has two parts, the second through sigma:

    d / d z_j  =  a (g at j - G P_j)  -  a^2 (sum_i g_i x_i - G E_P[x]) x_j / ((V - 1) sigma)

Shape legend: c = rows; V = vocabulary; S = sequences; k = columns of the ranking.
"""

import torch
from torch import Tensor

from distill.query import STD_FLOOR, Ranking


class ScaledRows:
    """Some rows of logits at one scale.

    Args:
        logits_cV: float32 or float64. Their mean is taken off, in place.
        ranking: Which sequence each row belongs to.

    Attributes:
        scale_c2: a, and the log-normaliser of a z: a log-probability is a z minus that.
        top_c: The largest of each row, its mean taken off.
        logprobs_ck: At the columns of the row's sequence, once they are chosen; -inf beyond V.
    """

    logprobs_ck: Tensor

    def __init__(self, logits_cV: Tensor, ranking: Ranking) -> None:
        self._ranking, width = ranking, logits_cV.shape[1]
        middle_c1 = logits_cV.mean(-1, keepdim=True)
        self._x_cV = logits_cV.sub_(middle_c1)
        norm_c = torch.linalg.vector_norm(self._x_cV, dim=-1)
        least = torch.finfo(logits_cV.dtype).tiny ** 0.5
        self._std_c = (norm_c / max(1, width - 1) ** 0.5).clamp(min=least)
        self._a_c = 1 / (self._std_c + STD_FLOOR)
        self.top_c = self._x_cV.amax(-1)
        self._top_c = self.top_c * self._a_c
        # In steps, since an addcmul that broadcasts twice takes three times as long.
        self._e_cV = (self._x_cV * self._a_c[:, None]).sub_(self._top_c[:, None]).exp_()
        self._sum_c = self._e_cV.sum(-1)
        # A batched product, since vecdot would make a tensor of all products.
        summed_c = torch.bmm(self._e_cV[:, None], self._x_cV[:, :, None]).flatten()
        self._mean_c = summed_c / self._sum_c  # E_P[x]
        log_z_c = self._sum_c.log() + self._top_c + middle_c1.squeeze(1) * self._a_c
        self.scale_c2 = torch.stack([self._a_c, log_z_c], 1)

    def mass(self) -> Tensor:
        """(S, V) the probability of each column, summed over the rows of each sequence."""
        sequences = torch.arange(self._ranking.sequences, device=self._x_cV.device)
        is_of_Sc = self._ranking.sequence_N == sequences[:, None]
        found: Tensor = (is_of_Sc / self._sum_c) @ self._e_cV
        return found

    def choose(self, columns_Sk: Tensor) -> None:
        """Sets `logprobs_ck` to those at the columns chosen for the sequences; -1 is padding."""
        self._ids_ck = columns_Sk[self._ranking.sequence_N]
        self._x_ck = self._x_cV.gather(1, self._ids_ck.clamp(min=0))
        log_z_c1 = (self._sum_c.log() + self._top_c)[:, None]
        logprobs_ck = self._x_ck * self._a_c[:, None] - log_z_c1
        self.logprobs_ck = logprobs_ck.masked_fill(self._ids_ck < 0, -torch.inf)

    def add_slope(self, into_cV: Tensor, slope_ck: Tensor) -> None:
        """Adds the gradient with respect to the logits.

        Args:
            into_cV: Added to.
            slope_ck: Slopes of `logprobs_ck`, 0 in padding.
        """
        total_c = slope_ck.sum(-1)
        along_c = torch.linalg.vecdot(slope_ck, self._x_ck) - total_c * self._mean_c
        freedom = max(1, self._x_cV.shape[1] - 1)
        through_std_c = -self._a_c.square() * along_c / (freedom * self._std_c)
        into_cV.addcmul_(self._x_cV, through_std_c[:, None])
        into_cV.addcmul_(self._e_cV, (-self._a_c * total_c / self._sum_c)[:, None])
        into_cV.scatter_add_(1, self._ids_ck.clamp(min=0), slope_ck * self._a_c[:, None])
