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
Shape legend: N = paired positions of all sequences, T = of one, S = sequences, k = columns; n, m =
rows and columns of a transport plan.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill.losses.declared import loss
from distill.losses.loss import Options, Paper, Student, Teacher

COLUMNS = 50
SL_WEIGHT = SD_WEIGHT = 0.1
SD_TEMPERATURE = 2.0
SINKHORN_REGULARISATION = 0.1
SINKHORN_ROUNDS = 20


def multilevel_ot(
    student_logprobs_Nk: Tensor, teacher_logprobs_Nk: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Compute the loss per sequence.

    Arithmetic is float32, or float64 if any input is.

    Args:
        student_logprobs_Nk: log P at the k columns of its sequence, most probable column first;
            -inf where the student has fewer tokens.
        teacher_logprobs_Nk: log Q, likewise; -inf also for tokens without an entry.
        lengths: Positions of each sequence, each at least 1; they add up to N.

    Returns:
        (S,) loss.
    """
    dtype = torch.promote_types(student_logprobs_Nk.dtype, teacher_logprobs_Nk.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    log_p_Nk, log_q_Nk = student_logprobs_Nk.to(dtype), teacher_logprobs_Nk.to(dtype)
    had_N = (log_p_Nk.exp() - log_q_Nk.exp()).abs().sum(-1)
    # Where the student has no such token its log is -inf, and no student could do better.
    hat_p_Nk = _renormalised(log_p_Nk).masked_fill(log_p_Nk == -torch.inf, 0)
    sl_N = -(_renormalised(log_q_Nk).exp() * hat_p_Nk).sum(-1)
    values = torch.split(had_N + SL_WEIGHT * sl_N, list(lengths))
    means = [value_T.mean() for value_T in values]
    if not means:
        return had_N
    return torch.stack(means) + SD_WEIGHT * _transported(log_p_Nk, log_q_Nk, lengths)


def _transported(log_p_Nk: Tensor, log_q_Nk: Tensor, lengths: Sequence[int]) -> Tensor:
    """Compute (S,) SD of each sequence, those of similar length together."""
    sides = [_renormalised(x / SD_TEMPERATURE).exp() for x in (log_q_Nk, log_p_Nk)]
    q, p = (torch.split(side, list(lengths)) for side in sides)
    cost_of: dict[int, Tensor] = {}
    for members in _of_like_length(lengths):
        q_STk, p_STk = (pad_sequence([x[i] for i in members], batch_first=True) for x in (q, p))
        count_S1 = q_STk.new_tensor([[lengths[i]] for i in members])
        places_T = torch.arange(q_STk.shape[1], device=q_STk.device)
        mass_ST = (places_T < count_S1) / count_S1
        costs_S = sinkhorn(torch.cdist(q_STk, p_STk, p=1), mass_ST, mass_ST)
        cost_of |= dict(zip(members, costs_S, strict=True))
    return torch.stack([cost_of[i] for i in range(len(lengths))])


def _of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group sequences to pad together: the longest is less than twice the shortest."""
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(length.bit_length(), []).append(i)
    return list(groups.values())


def sinkhorn(
    cost_Snm: Tensor,
    from_Sn: Tensor,
    to_Sm: Tensor,
    regularisation: float = SINKHORN_REGULARISATION,
    rounds: int = SINKHORN_ROUNDS,
) -> Tensor:
    """Compute the cost of entropic transport plans, as POT's `ot.sinkhorn2` does.

    The gradient is that of the rounds.

    Args:
        cost_Snm: Cost of moving mass from row to column: 0 to about 80 regularisations, since e^-88
            is the least that float32 holds. (Between distributions it is 2 at most, and e^-20 in
            the kernel.)
        from_Sn: Mass of each row, with sum 1. Padding has none.
        to_Sm: Mass wanted in each column, likewise.
        regularisation: Weight of the plan's entropy.
        rounds: Number of rounds, each of scaling columns, then rows.

    Returns:
        (S,) the plans' costs, without their entropy.
    """
    kernel_Snm = (-cost_Snm / regularisation).exp()
    u_Sn1, v_Sm1 = from_Sn[..., None], to_Sm[..., None]
    for _ in range(rounds):
        v_Sm1 = to_Sm[..., None] / (kernel_Snm.mT @ u_Sn1)
        u_Sn1 = from_Sn[..., None] / (kernel_Snm @ v_Sm1)
    return (u_Sn1 * kernel_Snm * v_Sm1.mT * cost_Snm).sum((-1, -2))


def _renormalised(logprobs_Tk: Tensor) -> Tensor:
    """Renormalise values to sum to 1 over the columns, as logs; a row of -inf stays so."""
    is_row_T1 = (logprobs_Tk.detach() > -torch.inf).any(-1, keepdim=True)
    hat_Tk = logprobs_Tk.masked_fill(~is_row_T1, 0).log_softmax(-1)
    return hat_Tk.masked_fill(~is_row_T1, -torch.inf)


@loss(
    needs={"entries", "ids", "logit std"},
    pairs="sequence",
    columns=COLUMNS,
    weight=0.15,
    cited=Paper(
        "2412.14528",
        "Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge Distillation on "
        "Language Models",
    ),
    order=5,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Compare the columns of each sequence, ranked on either side."""
    lengths = torch.bincount(teacher["token_pair"], minlength=len(teacher["index"])).tolist()
    return multilevel_ot(
        student.columns(teacher["token_index"]), teacher["token_logprobs"], lengths
    )
