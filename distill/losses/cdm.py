"""Contextual dynamic mapping: tokens that stand for each other, as the student's own choice shows.

Which tokens belong together is decided twice. Positions: every label has one of the teacher's
tokens, by warping both sides over what they write (:mod:`distill.alignment.warping`). Tokens: of
the teacher's stored entries T and the student's own S largest, as many,

    fixed         v has a token u in a map made once: of the same bytes (`--cdm_map exact`), or also
                  the student's longest that begins v (prefix), or the nearest of all (mined)
    contextual    of all others, u in S that is nearest to v, if their edits over the bytes of both
                  are fewer than `--cdm_threshold`, and u is not fixed to another entry

With t(u) the sum of q(v) over the entries that are taken for u, among tokens with such mass, and
the other way round g(u) the entry that each u in S is taken for,

    loss = KL(t || p) / 2  +  KL(q(g) || p) / 2          each side made to sum to one over its pairs

What the paper leaves open, or a store cannot know, is decided so. The paper weighs the cost of a
step by the entropies of both models; the student's changes in every step, so it is the teacher's
alone. It compares means over the tokens that a path puts beside one; here it is the most alike of
them. It gives no threshold; 0.1 of the bytes of both is that of a public re-implementation, and so
is the mean of both directions. A space in front of a token is one of its bytes. T and S are as
large as the store's records, 100 in that re-implementation (`--train_top_k`: fewer).

S has no gradient, so the loss jumps where a token enters it. Where nothing stands for anything the
loss is 0, and with `--uncovered hard` the label's cross-entropy takes its place; elsewhere what is
missing of a label that some entry stands for is -log p of all such tokens together.

Ref: arXiv:2502.11104. Shape legend: N = positions, K = entries, E = pairs of an entry and a token.
"""

import torch
from torch import Tensor

from distill.losses.aligned import Aligned, Arrays
from distill.losses.declared import loss
from distill.losses.loss import Ask, Option, Options, Pairing, Paper, Student, Teacher

#: How alike two tokens are is compared in these parts of one.
_PARTS = 2**20


def cdm(
    student_NE: Tensor,
    least_N: Tensor,
    teacher_NK: Tensor,
    alike_NE: Tensor,
    entry_NE: Tensor,
    first_NE: Tensor,
) -> Tensor:
    """Compute the loss per position in nats. Arithmetic is float32, or float64 if any input is.

    Args:
        student_NE: The student's log-probabilities at the token of each pair; padding is not read.
        least_N: The least log-probability of its S largest.
        teacher_NK: The teacher's entries; -inf marks a padding slot.
        alike_NE: How alike entry and token are: 1 if that is fixed, below it less; -inf in padding.
        entry_NE: The slot of the entry.
        first_NE: The slot of the first pair with the same token.

    Returns:
        (N,) loss; 0 where nothing stands for anything.
    """
    dtype = torch.promote_types(student_NE.dtype, teacher_NK.dtype)
    student_NE = student_NE.to(torch.promote_types(dtype, torch.float32))
    teacher_NK = teacher_NK.to(student_NE.dtype)
    entry_NE, first_NE = entry_NE.long(), first_NE.long()
    if not alike_NE.shape[1]:
        return student_NE.sum(1)
    is_live_NE = student_NE.detach() >= least_N.to(student_NE.dtype)[:, None]
    chosen_NE = taken(alike_NE, entry_NE, is_live_NE, teacher_NK.shape[1])
    q_NE = teacher_NK.gather(1, entry_NE).masked_fill(alike_NE == -torch.inf, -torch.inf)
    t_NE = torch.zeros_like(q_NE).scatter_add(1, first_NE, q_NE.exp() * chosen_NE)
    forward_N = _renormalised_kl(t_NE.log(), student_NE, t_NE > 0)
    # Of equally alike entries the more probable one, which stands before the others.
    own_NE = _best(alike_NE, teacher_NK.shape[1] - entry_NE, first_NE, is_live_NE)
    return (forward_N + _renormalised_kl(q_NE, student_NE, own_NE)) / 2


def taken(alike_NE: Tensor, entry_NE: Tensor, is_live_NE: Tensor, entries: int) -> Tensor:
    """Mark (N, E) the token that each entry is taken for, at most one."""
    slot_E = torch.arange(alike_NE.shape[1], 0, -1, device=alike_NE.device)
    is_usable_NE = is_live_NE | (alike_NE == 1)
    return _best(alike_NE, slot_E.expand_as(entry_NE), entry_NE, is_usable_NE, entries)


def _best(
    alike_NE: Tensor, rank_NE: Tensor, of_NE: Tensor, is_usable_NE: Tensor, width: int = 0
) -> Tensor:
    """Mark the usable pair of each owner that is most alike, and then of the highest rank.

    Args:
        alike_NE: How alike each pair is; -inf in padding.
        rank_NE: Decides among equals; distinct among the pairs of an owner.
        of_NE: The owner of each pair.
        is_usable_NE: Which may be chosen.
        width: The number of owners; 0: as many as pairs.
    """
    parts_NE = (alike_NE.clamp(min=0) * _PARTS).round().long()
    is_usable_NE = is_usable_NE & (alike_NE > -torch.inf)
    key_NE = (parts_NE * (2**31) + rank_NE).masked_fill(~is_usable_NE, -1)
    best_NX = key_NE.new_full((len(key_NE), width or key_NE.shape[1]), -1)
    best_NX = best_NX.scatter_reduce(1, of_NE, key_NE, "amax")
    return is_usable_NE & (key_NE == best_NX.gather(1, of_NE))


def _renormalised_kl(q_NE: Tensor, p_NE: Tensor, is_in_NE: Tensor) -> Tensor:
    """Compute (N,) KL(q || p) over some pairs, both made to sum to one there; 0 over none."""
    has_any_N1 = is_in_NE.any(1, keepdim=True)
    log_q_NE, log_p_NE = (_normalised(x, is_in_NE, has_any_N1) for x in (q_NE, p_NE))
    term_NE = log_q_NE.exp() * (log_q_NE - log_p_NE)
    return term_NE.masked_fill(~is_in_NE, 0).sum(1)


def _normalised(x_NE: Tensor, is_in_NE: Tensor, has_any_N1: Tensor) -> Tensor:
    # What is left out must not be -inf: its gradient is NaN, even times zero.
    kept_NE = x_NE.masked_fill(~is_in_NE, -torch.inf).masked_fill(~has_any_N1, 0)
    return x_NE.masked_fill(~is_in_NE, 0) - kept_NE.logsumexp(1, keepdim=True)


def _pairing(options: Options) -> Pairing:
    return Pairing("strings", f"alike {options['cdm_map']}")


def _arrays(aligned: Aligned, options: Options) -> Arrays:
    return {"index": aligned.last_label, **aligned.alike_entries(options["cdm_threshold"])}


def _ask(teacher: Teacher, _options: Options) -> Ask:
    width = teacher["entry_logprobs"].shape[1]
    return Ask(top_k=width, ids_PK=teacher["edge_ids"], has_rest=False)


def _least(teacher: Teacher, student: Student) -> Tensor:
    """Find (P,) the least of the student's largest, as many as the record has entries."""
    top_PK = student.top(teacher["entry_logprobs"].shape[1]).detach()
    has_entry_PK = teacher["entry_logprobs"] > -torch.inf
    return top_PK.masked_fill(~has_entry_PK, torch.inf).amin(1)


def _cell(teacher: Teacher, student: Student, _options: Options) -> Tensor | None:
    """Compute (P,) what is left open of a label that stands for an entry: log p(y) - log p(all)."""
    if not teacher["edge_ids"].shape[1]:
        return torch.zeros_like(student.label())
    at_PE, entries = student.at_ids(), teacher["entry_logprobs"].shape[1]
    is_live_PE = at_PE.detach() >= _least(teacher, student)[:, None]
    chosen_PE = taken(teacher["edge_alike"], teacher["edge_entry"], is_live_PE, entries)
    known_PE = torch.zeros_like(chosen_PE, dtype=torch.long)
    known_PE = known_PE.scatter_add(1, teacher["edge_first"], chosen_PE.long()) > 0
    is_label_P = (known_PE & (teacher["edge_is_label"] > 0)).any(1)
    # Rows without a label among them do not count, and must not be all -inf.
    all_P = at_PE.masked_fill(~known_PE, -torch.inf).masked_fill(~is_label_P[:, None], 0)
    return (student.label() - all_P.logsumexp(1)).masked_fill(~is_label_P, 0)


@loss(
    needs={"entries", "ids", "byte spans"},
    pairs=_pairing,
    arrays=_arrays,
    ask=_ask,
    cell=_cell,
    options=(
        Option(
            "cdm_map",
            default="exact",
            help="cdm: which tokens stand for each other everywhere: those of equal bytes, also "
            "the longest that begins one, or the nearest of all.",
            choices=("exact", "prefix", "mined"),
        ),
        Option(
            "cdm_threshold",
            default=0.1,
            help="cdm: edits, over the bytes of both tokens, from which one of the student's most "
            "probable stands for no other token.",
            expected="0 to 0.1",
            is_valid=lambda value: 0 <= value <= 0.1,
        ),
    ),
    cited=Paper(
        "2502.11104",
        "Enhancing Cross-Tokenizer Knowledge Distillation with Contextual Dynamical Mapping",
    ),
    order=9,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Compare the tokens that stand for each other, in both directions."""
    if not teacher["entry_logprobs"].shape[1]:
        return student.label() * 0
    return cdm(
        student.at_ids(),
        _least(teacher, student),
        teacher["entry_logprobs"],
        teacher["edge_alike"],
        teacher["edge_entry"],
        teacher["edge_first"],
    )
