"""Forward KL divergence to a teacher whose entries were sent to student tokens.

A map of the vocabularies sends each of the teacher's stored tokens v to the student token f(v) that
begins its bytes; t(x) is the sum of q(v) over f(v) = x. All else, the tail and whatever the map has
no place for, is one bucket, here `rest`. The student's rest is its mass outside the same ids:

    loss = sum_{x: t(x) > 0} t(x) (log t(x) - log p(x))  +  t_rest (log t_rest - log p_rest)

Both sides sum to one over these buckets and nothing is renormalised, so the loss is a KL divergence
over them: never negative, zero exactly when they agree, and never above the KL of finer buckets.
The student's rest must come as a logsumexp over the other tokens: 1 - sum(p) cancels to noise
exactly where the student is good.

Refs: arXiv:2512.14954, arXiv:2605.21699, arXiv:2610.08448 (byte-prefix maps and strict positions).
Shape legend: N = positions, K = largest count of mapped ids.
"""

import torch
from torch import Tensor

from distill.losses.declared import loss
from distill.losses.loss import Options, Student, Teacher


def mapped_kl(
    student_logprobs_NK: Tensor,
    student_rest_N: Tensor,
    target_logmass_NK: Tensor,
    target_rest_N: Tensor,
) -> Tensor:
    """Compute the loss per position in nats.

    Arithmetic is float32, or float64 if any input is.

    A student whose every token is among the ids has no rest (-inf): what the teacher put there can
    be answered by no student, so that term is dropped. What is left has its minimum where p is
    proportional to t, and its value can then be below zero, by at most 1/e.

    Args:
        student_logprobs_NK: The student's log-probabilities at the mapped ids; anything in padding.
        student_rest_N: Log of the student's mass outside the ids that have target mass (so an id
            without any must not be asked of the head); -inf for none.
        target_logmass_NK: Log of the teacher's mass sent to each id; -inf marks a padding slot.
        target_rest_N: Log of the teacher's mass sent to none; -inf for none.

    Returns:
        (N,) loss. A row without any target mass is 0, with zero gradient.
    """
    dtype = torch.promote_types(student_logprobs_NK.dtype, target_logmass_NK.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    at_ids_NK = _term(target_logmass_NK.to(dtype), student_logprobs_NK.to(dtype))
    rest_N, target_rest_N = student_rest_N.to(dtype), target_rest_N.to(dtype)
    return at_ids_NK.sum(-1) + _term(target_rest_N.where(rest_N > -torch.inf, -torch.inf), rest_N)


def _term(log_t: Tensor, log_p: Tensor) -> Tensor:
    """Compute t (log t - log p); for t = 0 it is 0, and its gradient too, even if p is 0."""
    return torch.where(log_t > -torch.inf, log_t.exp() * (log_t - log_p), 0)


@loss(
    needs={"entries", "ids", "tail", "byte spans"},
    cell=lambda teacher, student, _options: student.cell(teacher),
    order=1,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Compare at the tokens, or groups of them, that the run's map sends the entries to."""
    return mapped_kl(
        student.at_ids(), student.rest(), teacher["entry_logmass"], teacher["rest_logmass"]
    )
