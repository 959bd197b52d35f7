"""Approximate likelihood matching: any two tokenizers, one probability per group of bytes.

For a group of tokens that start and end together on both sides, a is the teacher's log-probability
of all its tokens there and b the student's of all of its own. Each is one number, the probability
of a yes, so the loss is the cross-entropy of a coin, made less one-sided by a temperature T:

    loss = -[ e^(a/T) b/T  +  (1 - e^(a/T)) log(1 - e^(b/T)) ]                           T = 100

Its minimum over b is at b = a, where it is the entropy of that coin and not 0. Times T, less that
entropy, its limit for large T is a divergence, 0 at b = a:

    limit = (a - b) + a log(b / a)

It reads nothing of the teacher but one number a token, so it also serves students that share hardly
a token with their teacher: those that read bytes, say.

Refs: arXiv:2503.20083. Shape legend: G = groups.
"""

import math

import torch
from torch import Tensor

from distill.losses.declared import loss
from distill.losses.loss import Option, Options, Paper, Student, Teacher

#: A group surer than this has rounded to certainty: a float32 sum of log-probabilities is known to
#: about that many nats, and the logarithm of what is left to 1 would be noise.
SUREST_NATS = -1e-6
#: The least that a store can say of a token which the teacher ruled out.
FLOOR_NATS = -256.0


def alm(student_logprob_G: Tensor, teacher_logprob_G: Tensor, temperature: float = 100.0) -> Tensor:
    """Compute the loss per group.

    Arithmetic is float32, or float64 if any input is.

    Args:
        student_logprob_G: Sum of the student's log-probabilities of the group's own tokens, nats.
        teacher_logprob_G: The same of the teacher, for its tokens of the same bytes.
        temperature: T; `math.inf` for the limit.

    Returns:
        (G,) loss.
    """
    dtype = torch.promote_types(student_logprob_G.dtype, teacher_logprob_G.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    a_G = teacher_logprob_G.to(dtype).clamp(min=FLOOR_NATS, max=SUREST_NATS)
    b_G = student_logprob_G.to(dtype).clamp(max=SUREST_NATS)
    if math.isinf(temperature):
        return (a_G - b_G) + a_G * (b_G / a_G).log()
    a_G, b_G = a_G / temperature, b_G / temperature
    # 1 - e^x as -expm1(x): the two are nearly equal, and all is in what is left.
    return -(a_G.exp() * b_G - torch.expm1(a_G) * (-torch.expm1(b_G)).log())


@loss(
    needs={"token logprob", "byte spans"},
    pairs="groups",
    options=(
        Option(
            "alm_temperature",
            100.0,
            "Of alm; `inf` is its limit, zero for equal models.",
            expected="a number above 0, or inf",
            is_valid=lambda value: value > 0,
        ),
    ),
    cited=Paper(
        "2503.20083",
        "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching",
    ),
    order=6,
)
def LOSS(teacher: Teacher, student: Student, options: Options) -> Tensor:
    """Compare what both sides give the bytes of each group."""
    student_P = student.added_up(teacher["token_index"], teacher["token_pair"])
    return alm(student_P, teacher["logprob"], options["alm_temperature"])
