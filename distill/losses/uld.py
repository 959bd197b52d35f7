"""Universal Logit Distillation from a cached top-k, with a certified error.

ULD compares the *sorted* probabilities of two models, so their vocabularies need not match. Over
sorted student p and teacher q, the smaller vocabulary padded with zeros:

    ULD = sum_i |p_i - q_i|

A store holds the teacher's k largest probabilities and the mass u of all others; s is the student's
mass beyond its own k largest. The sum over i > k lies between |s - u| and s + u, so

    loss = sum_{i<=k} |p_i - q_i| + |s - u|   <=   ULD   <=   loss + gap,      gap = 2 min(s, u)

The loss is zero for a student equal to its teacher (zero-padding the teacher instead is not: it
pushes the student's tail to nothing), and needs no sort of the student's vocabulary. Over groups of
tokens (GOLD's merge) each side's distribution is its last position's, scaled by the probability of
the group's earlier tokens: a for the student, b for the teacher. Sorting does not feel a scale, so
the same holds with a*p, a*s, b*q and b*u.

Refs: arXiv:2402.12030 (ULD: weight 1.5 beside cross-entropy, temperature 1); TRL's GOLD (groups).
Shape legend: N = positions or groups, K = largest count of stored entries.
"""

import numpy as np
import torch
from torch import Tensor

from distill.losses.aligned import TOKEN_LOGPROB_ERROR_NATS, Aligned, Arrays
from distill.losses.declared import loss
from distill.losses.loss import Option, Options, Pairing, Paper, Student, Teacher

#: Rounding error of 1 - sum(p), in units of epsilon: a smaller s - u is noise, without a sign.
ROUNDING = 16


def uld(
    student_logprobs_NK: Tensor,
    teacher_logprobs_NK: Tensor,
    teacher_tail_N: Tensor,
    *,
    student_log_scale_N: Tensor | None = None,
    teacher_log_scale_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the loss per position and its certified error, both in probability (0 to 2).

    Where a record holds fewer than K entries, k is that record's: the student's mass beyond it is
    its tail. Arithmetic is float32, or float64 if anything given is.

    Args:
        student_logprobs_NK: The student's own K largest log-probabilities over its full vocabulary,
            sorted descending; -inf beyond a smaller vocabulary.
        teacher_logprobs_NK: The teacher's, sorted descending; -inf beyond the record's count.
        teacher_tail_N: Log of the teacher's tail, its mass beyond the entries; -inf for none.
        student_log_scale_N: Sum of log-probabilities of the group's earlier tokens, student.
        teacher_log_scale_N: The same, teacher.

    Returns:
        (N,) loss, and (N,) gap without gradient: |exact ULD - loss| <= gap.
    """
    assert student_logprobs_NK.shape == teacher_logprobs_NK.shape, "both sides need the same K"
    dtype = torch.promote_types(student_logprobs_NK.dtype, teacher_logprobs_NK.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    a_N = _scale(student_log_scale_N, teacher_tail_N, dtype)
    b_N = _scale(teacher_log_scale_N, teacher_tail_N, dtype)

    has_entry_NK = teacher_logprobs_NK > -torch.inf
    p_NK = student_logprobs_NK.to(dtype).exp().masked_fill(~has_entry_NK, 0)
    q_NK = teacher_logprobs_NK.to(dtype).exp()
    head_N = (a_N[:, None] * p_NK - b_N[:, None] * q_NK).abs().sum(-1)

    # Here 1 - sum(p) does no harm: nothing takes its logarithm, and its gradient is exact.
    s_N = a_N * (1 - p_NK.sum(-1)).clamp(min=0)
    u_N = b_N * teacher_tail_N.to(dtype).exp()
    tail_N = (s_N - u_N).abs()
    is_noise_N = tail_N.detach() <= ROUNDING * torch.finfo(dtype).eps * a_N.detach()
    return head_N + tail_N.masked_fill(is_noise_N, 0), 2 * torch.minimum(s_N, u_N).detach()


def _scale(log_scale_N: Tensor | None, like_N: Tensor, dtype: torch.dtype) -> Tensor:
    if log_scale_N is None:
        return torch.ones_like(like_N, dtype=dtype)
    return log_scale_N.to(dtype).exp()


def _arrays(aligned: Aligned, _options: Options) -> Arrays:
    """Take of each pair its last record, times the probability of the tokens before it.

    `codec_bound` is how far the L1 distance to the *live* teacher's group can differ for what the
    store rounds: c · (l1_max + e^(E h) - 1), with c the scale, E the earlier tokens and h the error
    of one stored token log-probability, since |c q - c' q'|_1 <= c |q - q'|_1 + |c - c'|.
    """
    log_scale = aligned.token_logprob(without_last=True)
    earlier = aligned.last_record - aligned.pairs[:, 0]
    bound = np.exp(log_scale) * (aligned.l1_max + np.expm1(earlier * TOKEN_LOGPROB_ERROR_NATS))
    return {
        "index": aligned.last_label,
        **aligned.entries(),
        "log_scale": log_scale.astype(np.float32),
        "codec_bound": bound.astype(np.float32),
        **aligned.earlier_labels(),
    }


def _is_by_position(options: Options) -> bool:
    return bool(options["pairing"] == "position")


@loss(
    # By position a pair has no earlier token, whose log-probability would be read.
    needs=lambda options: (
        frozenset({"entries", "tail", "byte spans"})
        | (frozenset() if _is_by_position(options) else {"token logprob"})
    ),
    pairs=lambda options: Pairing("positions" if _is_by_position(options) else "groups"),
    top_k="entries",
    arrays=_arrays,
    weight=1.5,
    options=(
        Option(
            "pairing",
            "bytes",
            "How uld pairs the two tokenisations; `position` is the paper's.",
            choices=("bytes", "position"),
        ),
    ),
    has_bound=True,
    cited=Paper(
        "2402.12030",
        "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    ),
    order=4,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> tuple[Tensor, Tensor]:
    """Compare the last positions of groups, scaled by the probability of what is before them."""
    values_P, gap_P = uld(
        student.top(teacher["entry_logprobs"].shape[1]),
        teacher["entry_logprobs"],
        teacher["tail_logmass"],
        student_log_scale_N=student.added_up(teacher["earlier_index"], teacher["earlier_pair"]),
        teacher_log_scale_N=teacher["log_scale"],
    )
    return values_P, gap_P + teacher["codec_bound"]
