"""MultiLevelOT: sorted-value distillation that ranks columns over a whole sequence.

Logits are first brought to one scale, z / (sigma + 1e-4) with sigma their standard deviation over
the vocabulary; P and Q are the softmax of that over student's and teacher's full vocabularies. Each
side then takes the k columns with the most probability summed over all of its supervised tokens, so
rank i is one token throughout a sequence. Over positions t of both sides, the n-th with the n-th:

    HAD   mean over t of  sum_i |P_ti - Q_ti|
    SL    mean over t of  -sum_i Q'_ti log P'_ti            ' = made to sum to 1 over the columns
    SD    <G, C>, C_ts = |Q'_t - P'_s|_1 with both at temperature 2, G the transport plan of mass 1
          between all positions that 20 rounds of Sinkhorn find at entropic regularisation 0.1

    loss = HAD + 0.1 SL + 0.1 SD                              with weight 0.15 beside cross-entropy

It is one value a sequence, whatever else is in the batch. SL is a cross-entropy, so the loss of a
student equal to its teacher is not 0. What a record does not list counts as 0 there.

The formulas are the paper's; its code ranks over the batch and exchanges the arguments of SL.

Refs: arXiv:2412.14528; Sinkhorn as in POT's `ot.sinkhorn2`.
Shape legend: N = paired positions of all sequences, T = of one, S = sequences, k = columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

#: What a store must hold for it; :mod:`distill.needs` knows these words.
NEEDS = frozenset({"entries", "ids", "logit std"})
COLUMNS = 50
SL_WEIGHT = SD_WEIGHT = 0.1
SD_TEMPERATURE = 2.0
SINKHORN_REGULARISATION = 0.1
SINKHORN_ROUNDS = 20


def multilevel_ot(
    student_logprobs_Nk: Tensor, teacher_logprobs_Nk: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Loss per sequence. Arithmetic is float32, or float64 if anything given is.

    Args:
        student_logprobs_Nk: log P at the k columns of its sequence, most probable column first;
            -inf where the student has fewer tokens.
        teacher_logprobs_Nk: log Q, likewise; -inf also for what no entry says.
        lengths: Positions of each sequence, each at least 1; they add up to N.

    Returns:
        (S,) loss.
    """
    dtype = torch.promote_types(student_logprobs_Nk.dtype, teacher_logprobs_Nk.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    sides = (student_logprobs_Nk.to(dtype), teacher_logprobs_Nk.to(dtype))
    parts = (torch.split(side_Nk, list(lengths)) for side_Nk in sides)
    each = [_of_one_sequence(p_Tk, q_Tk) for p_Tk, q_Tk in zip(*parts, strict=True)]
    return torch.stack(each) if each else student_logprobs_Nk.sum(-1).to(dtype)


def _of_one_sequence(log_p_Tk: Tensor, log_q_Tk: Tensor) -> Tensor:
    had = (log_p_Tk.exp() - log_q_Tk.exp()).abs().sum(-1).mean()
    # Where the student has no such token its log is -inf, and no student could do better.
    hat_p_Tk = _renormalised(log_p_Tk).masked_fill(log_p_Tk == -torch.inf, 0)
    sl = -(_renormalised(log_q_Tk).exp() * hat_p_Tk).sum(-1).mean()
    cost_TT = torch.cdist(
        _renormalised(log_q_Tk / SD_TEMPERATURE).exp(),
        _renormalised(log_p_Tk / SD_TEMPERATURE).exp(),
        p=1,
    )
    return had + SL_WEIGHT * sl + SD_WEIGHT * sinkhorn(cost_TT)


def sinkhorn(
    cost_TT: Tensor,
    regularisation: float = SINKHORN_REGULARISATION,
    rounds: int = SINKHORN_ROUNDS,
) -> Tensor:
    """Cost of the entropic transport plan between two uniform marginals of mass 1.

    In logarithms, since e^(-cost / regularisation) underflows; the gradient is that of the rounds.

    Args:
        cost_TT: (n, m) what it costs to carry mass from row to column.
        regularisation: Weight of the plan's entropy.
        rounds: Of scaling columns, then rows.

    Returns:
        The plan's cost, a scalar, without its entropy.
    """
    log_k_TT = -cost_TT / regularisation
    n, m = cost_TT.shape
    log_u_T = cost_TT.new_full((n,), 1 / n).log()
    log_a, log_b = log_u_T[0], cost_TT.new_tensor(1 / m).log()
    log_v_T = cost_TT.new_zeros(m)
    for _ in range(rounds):
        log_v_T = log_b - (log_k_TT + log_u_T[:, None]).logsumexp(0)
        log_u_T = log_a - (log_k_TT + log_v_T).logsumexp(1)
    plan_TT = (log_u_T[:, None] + log_k_TT + log_v_T).exp()
    return (plan_TT * cost_TT).sum()


def _renormalised(logprobs_Tk: Tensor) -> Tensor:
    """Log of the values made to sum to 1 over the columns; -inf for those that are, if all are."""
    is_row_T1 = (logprobs_Tk.detach() > -torch.inf).any(-1, keepdim=True)
    hat_Tk = logprobs_Tk.masked_fill(~is_row_T1, 0).log_softmax(-1)
    return hat_Tk.masked_fill(~is_row_T1, -torch.inf)
