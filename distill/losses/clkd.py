"""CLKD over a sequence's columns: instances, classes and their correlation.

The paper is of images: logits of a batch over C classes. Here a *class* is a column of one
sequence, the k tokens with most probability over all of its positions, by rank and each side its
own, and an *instance* is one of its positions. P and Q are the student's and the teacher's
probabilities there, of logits divided by their standard deviation, as MultiLevelOT has them:

    instance      mean over t, j of  (P_tj / |P_t| - Q_tj / |Q_t|)^2         rows of length one
    class         mean over t, j of  (P_tj / |P_j| - Q_tj / |Q_j|)^2         columns of length one
    correlation   |B(P) - B(Q)|_F^2 / k^2,   B(X) = sum_j (x_j - mean)(x_j - mean)^T / (k - 1)

    loss = 0.5 (instance + 2 class) + 0.4 correlation          with weight 10 beside cross-entropy

(0.1 of cross-entropy beside it in a re-implementation, whose constants these are.) What differs
from the paper: columns by rank instead of classes that both sides share, and probabilities at one
scale instead of logits, of which a store has those of its entries alone; what a record does not
list counts as 0. **Nobody has shown that this helps a language model**: the paper's evidence is of
image classification.

It is one value a sequence, whatever else is in the batch, and 0 for a student equal to its teacher.

Ref: arXiv:2211.14773. Shape legend: N = paired positions of all sequences, T = of one, S =
sequences, k = columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.losses.declared import loss
from distill.losses.loss import Options, Paper, Student, Teacher

COLUMNS = 50
LEVELS_WEIGHT, CLASS_WEIGHT, CORRELATION_WEIGHT = 0.5, 2.0, 0.4


def clkd(
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
    p_Nk, q_Nk = (x.to(dtype).exp() for x in (student_logprobs_Nk, teacher_logprobs_Nk))
    split = (torch.split(x, list(lengths)) for x in (p_Nk, q_Nk))
    sides = zip(*split, strict=True)
    values = [_of_sequence(p_Tk, q_Tk) for p_Tk, q_Tk in sides]
    return torch.stack(values) if values else p_Nk.sum(1)


def _of_sequence(p_Tk: Tensor, q_Tk: Tensor) -> Tensor:
    instance, of_class = (
        (_at_length_one(p_Tk, axis) - _at_length_one(q_Tk, axis)).square().mean() for axis in (1, 0)
    )
    k = p_Tk.shape[1]
    between = _apart(_centred(p_Tk), _centred(q_Tk)) / k**2
    return LEVELS_WEIGHT * (instance + CLASS_WEIGHT * of_class) + CORRELATION_WEIGHT * between


def _at_length_one(x_Tk: Tensor, axis: int) -> Tensor:
    """Divide rows or columns by their length; one of zeros stays so, and has no gradient."""
    is_zero = (x_Tk.detach() == 0).all(axis, keepdim=True)
    length = torch.linalg.vector_norm(x_Tk.masked_fill(is_zero, 1.0), dim=axis, keepdim=True)
    unit_Tk: Tensor = (x_Tk / length).masked_fill(is_zero, 0.0)
    return unit_Tk


def _centred(x_Tk: Tensor) -> Tensor:
    """Centre columns; B of the formula is the product with its own transpose."""
    centred_Tk: Tensor = (x_Tk - x_Tk.mean(0, keepdim=True)) / max(1, x_Tk.shape[1] - 1) ** 0.5
    return centred_Tk


def _apart(a_Tk: Tensor, b_Tk: Tensor) -> Tensor:
    """Compute |A A^T - B B^T|_F^2, with memory for the smaller of T x T and k x k.

    The latter is a difference of large numbers, and taken in float64.
    """
    if len(a_Tk) <= a_Tk.shape[1]:
        return (a_Tk @ a_Tk.T - b_Tk @ b_Tk.T).square().sum()
    a, b = a_Tk.double(), b_Tk.double()
    own, other, both = (x.T @ y for x, y in ((a, a), (b, b), (a, b)))
    apart = own.square().sum() + other.square().sum() - 2 * both.square().sum()
    return apart.to(a_Tk.dtype)


@loss(
    needs={"entries", "ids", "logit std"},
    pairs="sequence",
    columns=COLUMNS,
    weight=10.0,
    cited=Paper("2211.14773", "Class-aware Information for Logit-based Knowledge Distillation"),
    order=10,
)
def LOSS(teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Compare the columns of each sequence as CLKD compares classes."""
    lengths = torch.bincount(teacher["token_pair"], minlength=len(teacher["index"])).tolist()
    return clkd(student.columns(teacher["token_index"]), teacher["token_logprobs"], lengths)
