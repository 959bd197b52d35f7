"""Forward KL divergence to a teacher whose head is known exactly and its tail by a few draws.

A store with draws holds, of each position, K tokens with their probabilities q and S draws, with
replacement, from the mass u of all others. Each draw stands for u / S, so the target is

    t(x) = q(x) in the head,      t(x) = u c(x) / S for a token drawn c(x) times

and the loss is sum_x t(x) (log t(x) - log p(x)). Over the draws, t is the teacher's distribution on
average, wherever it puts its mass: so the *gradient*, p - t, is the full vocabulary's on average,
which no top-k's is. With K = 0 this is Sparse Logit Sampling; entries known exactly add no noise,
so a head lowers the variance.

The *value* of one position is above the true divergence, by the entropy that few draws do not show,
and is not 0 for a student equal to its teacher. Compare values of one store only.

Refs: arXiv:2503.16870 (12 distinct tokens of 50 draws recover all of full KD at 300M).
Shape legend: N = positions, K = entries, D = distinct draws.
"""

import torch
from torch import Tensor

from distill.losses.declared import loss
from distill.losses.loss import Options, Paper, Student, Teacher


def sampled_kl(
    student_logprobs_NK: Tensor,
    student_draws_ND: Tensor,
    teacher_logprobs_NK: Tensor,
    teacher_tail_N: Tensor,
    counts_ND: Tensor,
) -> Tensor:
    """Compute the loss per position in nats.

    Arithmetic is float32, or float64 if any input is.

    Args:
        student_logprobs_NK: The student's, at the teacher's entries; anything in padding.
        student_draws_ND: The student's, at the ids drawn; anything in padding.
        teacher_logprobs_NK: The teacher's entries; -inf marks a padding slot.
        teacher_tail_N: Log of the teacher's tail, its mass beyond the entries; -inf for none.
        counts_ND: How often each id was drawn; 0 marks a padding slot. A position without draws is
            compared in its entries alone.

    Returns:
        (N,) loss. A row without entries and draws is 0, with zero gradient.
    """
    dtype = torch.promote_types(teacher_logprobs_NK.dtype, student_logprobs_NK.dtype)
    counts_ND = counts_ND.to(torch.promote_types(dtype, torch.float32))
    draws_N = counts_ND.sum(-1).clamp(min=1)  # no draws: nothing to share the tail among
    worth_ND = teacher_tail_N[:, None] + counts_ND.log() - draws_N.log()[:, None]
    target = torch.cat([teacher_logprobs_NK.to(worth_ND.dtype), worth_ND], 1)
    student = torch.cat([student_logprobs_NK, student_draws_ND], 1).to(worth_ND.dtype)
    # t is 0 in padding, and so is its gradient, whatever the student has there.
    return torch.where(target > -torch.inf, target.exp() * (target - student), 0).sum(-1)


@loss(
    needs={"ids", "tail", "draws", "same tokenizer", "byte spans"},
    cited=Paper("2503.16870", "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs"),
    order=3,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Compare at the teacher's entries, and at the tokens that were drawn from its tail."""
    logprobs_PK, entries = student.at_ids(), teacher["entry_ids"].shape[1]
    return sampled_kl(
        logprobs_PK[:, :entries],
        logprobs_PK[:, entries:],
        teacher["entry_logprobs"],
        teacher["tail_logmass"],
        teacher["draw_times"],
    )
