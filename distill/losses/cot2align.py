"""CoT2Align: optimal transport between the rows of both models, at two layers, of one text or two.

At each of the student's labels i of a text, and each of the teacher's records j, two pairs of rows:

    last layer         x_i  the student's last hidden state        y_j = W h_j      the teacher's
    embedding layer    x_i  its embedding of the token read last   y_j = W e(x_j)   likewise

    C = 1 - softmax over j of (x_i y_j / sqrt(D))         D the student's width
    P = the plan of entropic transport from 1/n to 1/m:  u exp(-a C) v, 100 rounds of Sinkhorn's
    OT(student's text, teacher's text) = sum over both layers of sum_ij P_ij C_ij

    loss of a text      OT(text, text) / 4
    with --cot_store    the plain text also  OT(plain, reasoning) / 4   across the two

where the reasoning text is another answer to the same prompt, a chain of thought, in a store of its
own. So with two texts the sum is the paper's: plain with plain, the student's plain with the
teacher's reasoning, reasoning with reasoning. (Its public code crosses both ways.) The student
learns both texts, by cross-entropy and any other loss, as two rows of the batch.

Each label has the value of its text, so a text weighs by its labels, in the mean over labels that
cross-entropy is, too; in the paper's code all texts weigh the same. Its rates of 0.5 are weight 1
beside cross-entropy. It adds ULD, DSKD or MinED: name one beside it. W is the loss's own, trained
with the student at `--loss_learning_rate`, saved beside it; where the widths of the layers differ
each layer has its own. The embedding layer is the input embedding alone: a model that adds
positions to it, as GPT-2 does, is compared without them.

**a is 0.1 in the paper's code, which teaches next to nothing**: exp(-0.1 C) is between 0.9 and 1,
so P is nearly uniform, and what a uniform plan costs is 1 - 1/m exactly, whatever the student says.
`--cot2align_alpha 20` makes a plan that chooses. No plan knows the order of rows.

Rounds end where P has the right margins up to 1e-6, in sum, which is float32's own rounding: at 0.1
after three or four.

Ref: arXiv:2502.16806. Shape legend: N = labels of a batch; n, m = labels and records of one text;
D = width of the student.
"""

import math
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.losses.declared import loss
from distill.losses.loss import Inside, Option, Options, Paper, Student, Teacher, Widths
from distill.losses.own_rate import RATE
from distill.losses.whole import by_sequence, decoded, embedded

ROUNDS, MARGIN = 100, 1e-6


class _Text(NamedTuple):
    """The rows of one text, of the embedding layer and the last."""

    student: tuple[Tensor, Tensor]
    teacher: tuple[Tensor, Tensor]
    is_second: bool


class Projected(nn.Module):
    """The projection of the teacher's rows, and the transport to them.

    Args:
        widths: Of both models.
        _options: Of the run.
    """

    def __init__(self, widths: Widths, _options: Options) -> None:
        super().__init__()
        assert widths.teacher_embedding is not None
        # Without a bias: it would add the same to the scores of all records, which changes nothing.
        self.last = nn.Linear(widths.teacher, widths.student, bias=False)
        of_embedding = widths.teacher_embedding, widths.student_embedding
        is_one = of_embedding == (widths.teacher, widths.student)
        self.embedding = None if is_one else nn.Linear(*of_embedding, bias=False)

    def forward(self, inside: Inside, teacher: Teacher, options: Options) -> dict[str, Tensor]:
        """Compute (N,) the value of the text of each label."""
        # Of an empty batch rows have no width.
        last = self.last(decoded(teacher, "whole").reshape(-1, self.last.in_features))
        into = self.last if self.embedding is None else self.embedding
        embedding = into(embedded(teacher, "whole_read").reshape(-1, into.in_features))
        own = inside.embed_trained(inside.read_N)
        second = teacher.get("whole_second", teacher["whole_sequence"].new_zeros(len(last)))
        texts = [
            _Text((own_n, state_n), (embedding_m, last_m), bool(second_m[:1].any()))
            for own_n, state_n, embedding_m, last_m, second_m in zip(
                *by_sequence(inside, teacher, [own, inside.hidden_ND], [embedding, last, second]),
                strict=True,
            )
        ]
        values = [
            _value(text, after, options["cot2align_alpha"]).expand(len(text.student[0]))
            for text, after in zip_longest(texts, texts[1:])
        ]
        # A batch without labels or records has a gradient, too: 0, which other processes wait for.
        nothing = torch.stack([each.sum() for each in (last[:0], embedding[:0], own[:0])]).sum()
        return {"transport": torch.cat([inside.hidden_ND.sum(1)[:0], *values]) + nothing}


def _value(text: _Text, after: _Text | None, alpha: float) -> Tensor:
    """Compare a text with its teacher's, and the plain one of two with the other's."""
    found = _between(text.student, text.teacher, alpha)
    if after is not None and after.is_second and not text.is_second:
        found = found + _between(text.student, after.teacher, alpha)
    return found / 4


def _between(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], alpha: float
) -> Tensor:
    if not len(student[0]) or not len(teacher[0]):
        return student[0].new_zeros(())
    embedding, last = (transport(x, y, alpha) for x, y in zip(student, teacher, strict=True))
    return embedding + last


def transport(x_nD: Tensor, y_mD: Tensor, alpha: float) -> Tensor:
    """Compute what the plan of entropic transport between two texts' rows costs, a scalar."""
    cost_nm = 1 - (x_nD @ y_mD.T / math.sqrt(x_nD.shape[1])).softmax(-1)
    return (plan(cost_nm, alpha) * cost_nm).sum()


def plan(cost_nm: Tensor, alpha: float) -> Tensor:
    """Compute (n, m) the plan by Sinkhorn's rounds, with the gradient through all of them."""
    n, m = cost_nm.shape
    kernel_nm = (-alpha * cost_nm).exp()
    u_n = cost_nm.new_full((n,), 1 / n)
    v_m = cost_nm.new_full((m,), 1 / m)
    for _ in range(ROUNDS):
        v_m = 1 / m / (kernel_nm.T @ u_n)
        u_n = 1 / n / (kernel_nm @ v_m)
        off = (v_m * (kernel_nm.T @ u_n) - 1 / m).detach().abs().sum()
        if float(off) < MARGIN:
            break
    return u_n[:, None] * kernel_nm * v_m


@loss(
    needs={"hidden", "embedding"},
    pairs="labels",
    module=Projected,
    second_text=True,
    options=(
        Option(
            "cot2align_alpha",
            0.1,
            "How sharply the plan of cot2align chooses among rows. With 0.1, the paper's, it is "
            "nearly uniform, and the student learns little from it; 20 makes one that chooses.",
            expected="a number above 0, 30 at most",
            is_valid=lambda alpha: 0 < alpha <= 30,  # e^30, squared in the gradient, is a float32
        ),
        RATE,
    ),
    cited=Paper(
        "2502.16806",
        "CoT2Align: Cross-Chain of Thought Distillation via Optimal Transport Alignment for "
        "Language Models with Different Tokenizers",
    ),
    order=11,
)
def LOSS(_teacher: Teacher, student: Student, _options: Options) -> Tensor:
    """Move the student's rows to the teacher's, at the embedding and the last layer."""
    return student.made("transport")
