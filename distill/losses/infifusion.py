"""InfiFusion: sorted probabilities of logits at one scale, summed over teachers.

Logits are standardised over the vocabulary, z' = (z - mu) / (sigma + 1e-4), so that teachers of
different sharpness are compared alike; p and q are the softmax of z' over all tokens of student and
teacher, sorted. Of the k largest of each side:

    loss = sum_{i<=k} |p_i - q_i|                unified:  sum over teachers of that, beside CE

A store of each teacher over the same text, `--logit-std` in each, is all it takes: mu falls out of
the softmax. With several stores (`--store a --store b`) every loss is the *mean* over the teachers,
so lambda times the paper's sum over S teachers is `--loss infifusion:W` with W = S lambda. Pairwise
fusion distils one teacher at a time, an ordinary run from one store each and all from the same
student, and then merges the students' weights (with mergekit, say); nothing of it is here.

The paper gives neither k nor lambda, and no code. Here k is what the store holds (fewer:
`--train_top_k`), a record that holds fewer counts for those, and lambda is 1. What lies beyond the
k largest is not compared, as in the paper. Positions are those at which both models have read the
same bytes.

What a store rounds changes the loss by at most sum_i q_i (e^(d / sigma) - 1), where d is the most
by which a stored log-probability is off: sigma and the normaliser at it are stored exactly.

Ref: arXiv:2501.02795. Shape legend: N = positions, V = student vocabulary, K = largest count of
stored entries.
"""

from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.aligned import Aligned, Arrays
from distill.losses.declared import loss
from distill.losses.loss import Options, Paper, Student, Teacher
from distill.losses.one_scale import STD_FLOOR


def infifusion(student_logprobs_NK: Tensor, teacher_logprobs_NK: Tensor) -> Tensor:
    """Compute the loss per position, in probability (0 to 2).

    Arithmetic is float32, or float64 if either side is.

    Args:
        student_logprobs_NK: The student's K largest log-probabilities at one scale, in order; -inf
            beyond a smaller vocabulary.
        teacher_logprobs_NK: The teacher's, likewise; -inf beyond the record's count.

    Returns:
        (N,) loss.
    """
    assert student_logprobs_NK.shape == teacher_logprobs_NK.shape, "both sides need the same K"
    dtype = torch.promote_types(student_logprobs_NK.dtype, teacher_logprobs_NK.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    has_entry_NK = teacher_logprobs_NK > -torch.inf
    p_NK = student_logprobs_NK.to(dtype).exp().masked_fill(~has_entry_NK, 0)
    return (p_NK - teacher_logprobs_NK.to(dtype).exp()).abs().sum(-1)


def top_at_one_scale(logits_NV: Tensor, k: int) -> Tensor:
    """Compute (N, k) the largest log-probabilities of standardised logits, in order.

    Args:
        logits_NV: The logits, float32 or float64 and finite.
        k: How many; those beyond V are -inf.
    """
    top: Tensor = _TopAtOneScale.apply(logits_NV, min(k, logits_NV.shape[1]))  # type: ignore[no-untyped-call]
    return nn.functional.pad(top, (0, k - top.shape[1]), value=-torch.inf)


class _TopAtOneScale(torch.autograd.Function):
    """The above, with two tensors of the logits' size where autograd would keep six.

    With x the logits less their mean, a = 1 / (sigma + 1e-4), P = softmax(a x), g the slopes of the
    answers and G their sum, the gradient is, the last part through sigma,

        a (g at j - G P_j)  -  a^2 (sum_i g_i x_i - G E_P[x]) x_j / ((V - 1) sigma)
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, k: int) -> Tensor:
        x_NV = logits_NV - logits_NV.mean(-1, keepdim=True)
        least = torch.finfo(x_NV.dtype).tiny ** 0.5
        freedom = max(1, x_NV.shape[1] - 1)
        std_N1 = torch.linalg.vector_norm(x_NV, dim=-1, keepdim=True) / freedom**0.5
        std_N1 = std_N1.clamp(min=least)
        a_N1 = 1 / (std_N1 + STD_FLOOR)
        x_Nk, ids_Nk = x_NV.topk(k)
        top_N1 = x_NV.amax(-1, keepdim=True)
        p_NV = x_NV.sub(top_N1).mul_(a_N1).exp_()
        sum_N1 = p_NV.sum(-1, keepdim=True)
        p_NV.div_(sum_N1)
        ctx.save_for_backward(x_NV, p_NV, std_N1, a_N1, x_Nk, ids_Nk)
        logprobs_Nk: Tensor = (x_Nk - top_N1) * a_N1 - sum_N1.log()
        return logprobs_Nk

    @staticmethod
    def backward(ctx: Any, slope_Nk: Tensor) -> tuple[Tensor, None]:
        x_NV, p_NV, std_N1, a_N1, x_Nk, ids_Nk = ctx.saved_tensors
        total_N1 = slope_Nk.sum(-1, keepdim=True)
        mean_N1 = torch.linalg.vecdot(p_NV, x_NV)[:, None]
        along_N1 = (slope_Nk * x_Nk).sum(-1, keepdim=True) - total_N1 * mean_N1
        freedom = max(1, x_NV.shape[1] - 1)
        slope_NV = x_NV * (-a_N1.square() * along_N1 / (freedom * std_N1))
        slope_NV.addcmul_(p_NV, -a_N1 * total_N1)
        return slope_NV.scatter_add_(1, ids_Nk, slope_Nk * a_N1), None


def _arrays(aligned: Aligned, _options: Options) -> Arrays:
    return {"index": aligned.last_label, **aligned.entries_at_one_scale()}


@loss(
    needs={"entries", "logit std"},
    logits=True,
    arrays=_arrays,
    cited=Paper(
        "2501.02795",
        "InfiFusion: A Unified Framework for Enhanced Cross-Model Reasoning via LLM Fusion",
    ),
    order=8,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Compare the largest probabilities by rank, both sides' logits at one scale."""
    entries_PK = teacher["entry_logprobs"]
    return infifusion(top_at_one_scale(student.logits(), entries_PK.shape[1]), entries_PK)
