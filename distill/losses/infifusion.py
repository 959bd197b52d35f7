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

import torch
from torch import Tensor

from distill.losses.aligned import Aligned, Arrays
from distill.losses.declared import loss
from distill.losses.loss import Ask, Options, Paper, Student, Teacher


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


def _arrays(aligned: Aligned, _options: Options) -> Arrays:
    return {"index": aligned.last_label, **aligned.entries_at_one_scale()}


@loss(
    needs={"entries", "logit std"},
    arrays=_arrays,
    ask=lambda teacher, _options: Ask(scaled_top_k=teacher["entry_logprobs"].shape[1]),
    cited=Paper(
        "2501.02795",
        "InfiFusion: A Unified Framework for Enhanced Cross-Model Reasoning via LLM Fusion",
    ),
    order=8,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Compare the largest probabilities by rank, both sides' logits at one scale."""
    entries_PK = teacher["entry_logprobs"]
    return infifusion(student.top_at_one_scale(entries_PK.shape[1]), entries_PK)
