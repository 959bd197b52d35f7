"""GOLD's hybrid: tokens that both vocabularies have by identity, all others by rank.

Over groups of tokens of equal bytes, each side's distribution is its last position's, times the
probability of the group's earlier tokens: a p for the student, b q for the teacher. M are the
tokens that both sides have (of the same bytes), and w is their share of the teacher's vocabulary:

    loss = w JSD  +  (1 - w) sum_i |a p_i - b q_i|        i over the tokens not in M, either sorted

    JSD  = (KL(b q || m) + KL(a p || m)) / 2              over M, and all else as one; m = the mean

A store holds the teacher's largest probabilities and the mass u of all others, of which it is not
known how much is in M. So M are those of the entries, and "all else" what is not among them: merged
tokens lower a JSD, and both sides sum to one, so it is never negative (TRL leaves "all else" out,
and its sum may be). Of the others, the store has the largest k; with s the student's mass of its
others beyond its own k largest, their sum over i > k is at least max(0, a s - b u), which stands
for it: nothing, for a student equal to its teacher.

Ref: TRL's GOLD (`bayesian` merge, weights by share). Its definition over full vocabularies is the
case K = V_T, but for the term of "all else".
Shape legend: N = groups, K = entries in M, J = entries not in M.
"""

import numpy as np
import torch
from torch import Tensor

from distill.losses.aligned import Aligned, Arrays
from distill.losses.declared import loss
from distill.losses.loss import Ask, Options, Pairing, Student, Teacher
from distill.losses.tail_kl import tail_kl


def gold(
    student_NK: Tensor,
    student_others_NJ: Tensor,
    student_apart_N: Tensor,
    student_rest_N: Tensor,
    teacher_NK: Tensor,
    teacher_others_NJ: Tensor,
    teacher_tail_N: Tensor,
    share_N: Tensor,
    student_log_scale_N: Tensor,
    teacher_log_scale_N: Tensor,
) -> Tensor:
    """Compute the loss per group. Arithmetic is float32, or float64 if any input is.

    Args:
        student_NK: The student's log-probabilities at the teacher's entries in M; padding is not
            read.
        student_others_NJ: Its J largest log-probabilities of tokens not in M, sorted descending;
            -inf beyond them.
        student_apart_N: Log of its mass of all tokens not in M; -inf for none.
        student_rest_N: Log of its mass of the tokens in M that are no entries; -inf for none.
        teacher_NK: The teacher's entries in M; -inf marks a padding slot.
        teacher_others_NJ: Its entries not in M, sorted descending; -inf beyond them.
        teacher_tail_N: Log of its mass beyond the entries; -inf for none.
        share_N: w, the share of its vocabulary that M is.
        student_log_scale_N: log a, of the group's earlier tokens; 0 for none.
        teacher_log_scale_N: log b, likewise.

    Returns:
        (N,) loss.
    """
    dtype = torch.promote_types(student_NK.dtype, teacher_NK.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    a_N, b_N = student_log_scale_N.to(dtype), teacher_log_scale_N.to(dtype)
    others_q_NJ = teacher_others_NJ.to(dtype) + b_N[:, None]
    tail_N = teacher_tail_N.to(dtype) + b_N
    apart_N = student_apart_N.to(dtype) + a_N
    jsd_N = tail_kl(
        student_NK.to(dtype) + a_N[:, None],
        _all_else(torch.stack([apart_N, student_rest_N.to(dtype) + a_N], 1), a_N),
        teacher_NK.to(dtype) + b_N[:, None],
        _all_else(torch.cat([others_q_NJ, tail_N[:, None]], 1), b_N),
        "jsd",
    )
    is_entry_NJ = others_q_NJ > -torch.inf
    p_NJ = (student_others_NJ.to(dtype) + a_N[:, None]).exp().masked_fill(~is_entry_NJ, 0)
    beyond_N = (apart_N.exp() - p_NJ.sum(1)).clamp(min=0)
    least_N = (beyond_N - tail_N.exp()).clamp(min=0)
    ranked_N = (p_NJ - others_q_NJ.exp()).abs().sum(1) + least_N
    share_N = share_N.to(dtype)
    return share_N * jsd_N + (1 - share_N) * ranked_N


def _all_else(logmass_NX: Tensor, log_scale_N: Tensor) -> Tensor:
    """Add up what is not compared one by one: these masses, and what the scale leaves to one."""
    is_scaled_N = log_scale_N < 0
    # Where nothing is scaled the logarithm would be of 0, whose gradient is no number.
    safe_N = log_scale_N.masked_fill(~is_scaled_N, -1.0)
    left_N = (-torch.expm1(safe_N)).log().masked_fill(~is_scaled_N, -torch.inf)
    every_NX = torch.cat([logmass_NX, left_N[:, None]], 1)
    has_any_N = (every_NX.detach() > -torch.inf).any(1)
    summed_N = every_NX.masked_fill(~has_any_N[:, None], 0).logsumexp(1)
    return summed_N.masked_fill(~has_any_N, -torch.inf)


def _arrays(aligned: Aligned, _options: Options) -> Arrays:
    log_scale = aligned.token_logprob(without_last=True).astype(np.float32)
    return {
        "index": aligned.last_label,
        **aligned.divided_entries(),
        "log_scale": log_scale,
        **aligned.earlier_labels(),
    }


def _ask(teacher: Teacher, _options: Options) -> Ask:
    ids_PK = teacher["entry_ids"]
    return Ask(
        top_k=teacher["other_logprobs"].shape[1],
        ids_PK=torch.cat([teacher["apart_event"][:, None].to(ids_PK.dtype), ids_PK], 1),
        has_top_of_first_event=True,
    )


@loss(
    needs={"entries", "ids", "tail", "token logprob", "byte spans"},
    pairs=Pairing("groups", "twins"),
    arrays=_arrays,
    ask=_ask,
    order=7,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Compare groups by the tokens that both vocabularies have, and by the rank of all others."""
    at_ids_PK = student.at_ids()
    return gold(
        at_ids_PK[:, 1:],
        student.top(teacher["other_logprobs"].shape[1]),
        at_ids_PK[:, 0],
        student.rest(),
        teacher["entry_logmass"],
        teacher["other_logprobs"],
        teacher["tail_logmass"],
        teacher["share"],
        student.added_up(teacher["earlier_index"], teacher["earlier_pair"]),
        teacher["log_scale"],
    )
