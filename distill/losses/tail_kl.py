"""KL divergences between models of one tokenizer, from a cached top-k with its tail.

K stored tokens and the tail are K + 1 buckets; q and p are the two sides' masses in them. With m
the mixture w q + (1 - w) p:

    forward   KL(q || p)                              follows the teacher everywhere it goes
    reverse   KL(p || q)                              stays away from where it never goes
    jsd       w KL(q || m) + (1 - w) KL(p || m)       w = 1/2; at most log 2
    skew      KL(q || m)                              w = 0.1; finite whatever the student does

Nothing is renormalised: a top-k made to sum to one teaches that all else is impossible, which is
worse than no distillation at k = 12 (arXiv:2503.16870). Merging tokens into a bucket can only lower
a divergence, so each value is at most that of the full vocabularies, and equal at K = V. The
student's tail must come as a logsumexp over the other tokens: 1 - sum(p) cancels to noise exactly
where the student is good.

At a temperature T both sides are softmax(z / T) over their full vocabularies; a store gives the
teacher's if T was captured. There is no factor T^2: it belongs in the loss's weight.

Refs: arXiv:2503.16870 (tail bucket), arXiv:2306.13649 (jsd), arXiv:2402.03898 (skew).
Shape legend: N = positions, K = largest count of stored entries.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from distill.losses.declared import loss
from distill.losses.loss import Option, Options, Student, Teacher

Kind = Literal["forward", "reverse", "jsd", "skew"]

#: The teacher's share of the mixture, of each kind that has one.
MIXTURE = {"jsd": 0.5, "skew": 0.1}
#: A teacher that rules all other tokens out still gives them e^-256, the least that a store can
#: say; the reverse divergence of a student that does not would be infinite.
FLOOR_NATS = -256.0


def tail_kl(
    student_logprobs_NK: Tensor,
    student_rest_N: Tensor,
    teacher_logprobs_NK: Tensor,
    teacher_tail_N: Tensor,
    kind: Kind = "forward",
) -> Tensor:
    """Compute the divergence per position in nats.

    Arithmetic is float32, or float64 if any input is.

    A student whose every token is an entry has no rest: the forward divergence then leaves out what
    the teacher put there, which no student could answer, and may be below zero by at most 1/e.

    Args:
        student_logprobs_NK: The student's log-probabilities at the teacher's entries; padding is
            not read.
        student_rest_N: Log of the student's mass at all other tokens; -inf for none.
        teacher_logprobs_NK: The log-probabilities of the entries; -inf marks a padding slot.
        teacher_tail_N: Log of the teacher's tail; -inf for none.
        kind: Which of the divergences above.

    Returns:
        (N,) loss. A row without any entry or tail is 0, with zero gradient.
    """
    dtype = torch.promote_types(student_logprobs_NK.dtype, teacher_logprobs_NK.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    has_entry_NK = teacher_logprobs_NK > -torch.inf
    p_NK = student_logprobs_NK.to(dtype).masked_fill(~has_entry_NK, -torch.inf)
    # A row without entries and tail was never the teacher's: it says nothing about p either.
    is_row_N = has_entry_NK.any(-1) | (teacher_tail_N > -torch.inf)
    rest_N = student_rest_N.to(dtype).masked_fill(~is_row_N, -torch.inf)
    log_p = torch.cat([p_NK, rest_N[:, None]], 1)
    log_q = torch.cat([teacher_logprobs_NK.to(dtype), teacher_tail_N.to(dtype)[:, None]], 1)
    if kind == "forward":
        has_rest_N1 = log_p[:, -1:] > -torch.inf
        rest_N1 = log_q[:, -1:].masked_fill(~has_rest_N1, -torch.inf)
        return _kl(torch.cat([log_q[:, :-1], rest_N1], 1), log_p)
    if kind == "reverse":
        return _kl(log_p, log_q.clamp(min=FLOOR_NATS))
    log_m = _mixture(log_q, log_p, MIXTURE[kind])
    if kind == "skew":
        return _kl(log_q, log_m)
    share = MIXTURE[kind]
    return share * _kl(log_q, log_m) + (1 - share) * _kl(log_p, log_m)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Compute sum a (log a - log b); a bucket with a = 0 adds nothing and has no gradient."""
    has_a = log_a > -torch.inf
    # Not a `where` on the result: the gradient of 0 * inf is NaN in the branch not taken, too.
    log_a, log_b = log_a.masked_fill(~has_a, 0), log_b.masked_fill(~has_a, 0)
    return (log_a.exp() * (log_a - log_b) * has_a).sum(-1)


def _mixture(log_q: Tensor, log_p: Tensor, share: float) -> Tensor:
    """Compute log(share q + (1 - share) p); -inf, without gradient, where both are 0."""
    shares = log_q.new_tensor([share, 1 - share]).log()
    both = torch.stack([log_q + shares[0], log_p + shares[1]])
    has_any = (both.detach() > -torch.inf).any(0)
    mixed = both.masked_fill(~has_any, 0).logsumexp(0)
    return mixed.masked_fill(~has_any, -torch.inf)


def _cell(teacher: Teacher, student: Student, options: Options) -> Tensor | None:
    """Find the entry that the label is, or the rest.

    Only the forward divergence is a mean over the teacher's tokens, and the text is one of those at
    temperature 1 alone: else it says nothing about the tokens of the rest.
    """
    is_mean = options["tail_kl_kind"] == "forward" and options["temperature"] == 1
    return student.cell(teacher) if is_mean else None


@loss(
    needs={"entries", "ids", "tail", "temperature", "same tokenizer", "byte spans"},
    cell=_cell,
    options=(
        Option(
            "tail_kl_kind",
            "forward",
            "Which divergence tail_kl is.",
            choices=("forward", "reverse", "jsd", "skew"),
        ),
        Option(
            "temperature",
            1.0,
            "Of both sides of tail_kl; the store must hold it.",
            expected="a number above 0",
            is_valid=lambda value: math.isfinite(value) and value > 0,
        ),
    ),
    order=2,
)
def LOSS(teacher: Teacher, student: Student, options: Options) -> Tensor:
    """Compare at the teacher's own tokens, and in what is left, at the run's temperature."""
    return tail_kl(
        student.at_ids(),
        student.rest(),
        teacher["entry_logmass"],
        teacher["rest_logmass"],
        options["tail_kl_kind"],
    )
