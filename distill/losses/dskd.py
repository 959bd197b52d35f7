"""DSKD with cross-model attention, its half in the student's space: hidden states, any tokenizer.

At each of the student's labels i and each of the teacher's records j of the same text, with e the
rows of a model's input embedding (x the token read last, y the token predicted), h the teacher's
last hidden state and a bar for division by its standard deviation over the sequence:

    Q_i = W_q [e(x_i); e(y_i)]          of the student        K_j = [e(x_j); e(y_j)] bar, teacher's
    V_j = W_v (h_j bar + e(y_j) bar)                          A = softmax(Q K^T / sqrt(2 D)) over j
    t_i = the student's own head of (A V)_i: what the teacher says, in the student's space

    loss = CE(t_i, y_i)  +  [argmax t_i = y_i] KL(softmax(sg t_i / T) || softmax(z_i / T))

The first term trains W_q and W_v alone (the head has no gradient there, nor have embeddings), the
second the student alone. W_q and W_v are the loss's own weights: trained with the student at
`--loss_learning_rate`, saved beside it.

Where t says another token than the text, the paper compares nothing. That leaves labels without a
target, which makes a trained student worse (see `--uncovered`), so the hard label stands in there;
`--dskd_wrong none` is the paper's. The paper's sum is half of that and half of CE, which is weight
1 beside CE here; its T is 2, and KL is not multiplied with T^2. Deviations are the sequence's own
here, not the batch's, so that batch mates change nothing.

The other half of the paper, the student in the teacher's space, needs the teacher's output head
beside the student, and is not done. Hidden states of a store are rounded: each number of h and e by
at most 1/16 of itself in fp8, 1/256 in bf16.

Ref: arXiv:2406.17328. Shape legend: N = labels of a batch, P = those of a chunk; l, r = labels and
records of one sequence; D = width of the teacher, V = student vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from distill.losses.declared import loss
from distill.losses.loss import Inside, Option, Options, Paper, Student, Teacher, Widths
from distill.losses.own_rate import RATE
from distill.losses.whole import by_sequence, decoded, embedded


class CrossModelAttention(nn.Module):
    """The two projections, and the attention between them.

    Args:
        widths: Of both models.
    """

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        if widths.teacher_embedding != widths.teacher:
            raise ValueError(
                "it adds the teacher's hidden states to its embeddings, and in this store these "
                f"have {widths.teacher} and {widths.teacher_embedding} numbers"
            )
        self.query = nn.Linear(2 * widths.student_embedding, 2 * widths.teacher)
        self.value = nn.Linear(widths.teacher, widths.student)

    def forward(self, inside: Inside, teacher: Teacher, _options: Options) -> dict[str, Tensor]:
        """Bring the teacher to each of the student's labels, in the space of its head."""
        pair_N = torch.cat([inside.embed(inside.read_N), inside.embed(inside.label_N)], 1)
        states = decoded(teacher, "whole")
        read, target = (embedded(teacher, f"whole_{name}") for name in ("read", "ids"))
        of_records = [states, read, target]
        split = by_sequence(inside, teacher, [self.query(pair_N)], of_records)
        attended = [self._attended(*each) for each in zip(*split, strict=True)]
        # A batch without labels or records has a gradient, too: 0, which other processes wait for.
        nothing = self.value(states.new_zeros(0, self.value.in_features))
        nothing = nothing + self.query(pair_N[:0]).sum()
        return {"projected": torch.cat([nothing, *attended])}

    def _attended(
        self, query_l: Tensor, state_r: Tensor, read_r: Tensor, target_r: Tensor
    ) -> Tensor:
        """Attend (l, D) from the labels of a sequence to its records."""
        if not len(state_r):
            return self.value.weight.new_zeros(len(query_l), self.value.out_features)
        key_r = at_one_scale(torch.cat([read_r, target_r], 1))
        value_r = self.value(at_one_scale(state_r) + at_one_scale(target_r))
        return cross_attention(query_l, key_r, value_r)


def cross_attention(query_l: Tensor, key_r: Tensor, value_r: Tensor) -> Tensor:
    """Compute softmax(Q K^T / sqrt(width of K)) V, rows of one sequence."""
    weights_lr = (query_l @ key_r.T / math.sqrt(key_r.shape[1])).softmax(-1)
    attended: Tensor = weights_lr @ value_r
    return attended


def at_one_scale(rows: Tensor) -> Tensor:
    """Divide by the standard deviation of all numbers."""
    tiny = torch.finfo(rows.dtype).tiny
    return rows / rows.std().clamp(min=tiny)


def dskd(
    student_logits_PV: Tensor,
    projected_logits_PV: Tensor,
    label_P: Tensor,
    temperature: float,
    *,
    has_hard: bool = True,
) -> Tensor:
    """Compute the loss per label.

    Arithmetic is float32, or float64 if either side is.

    Args:
        student_logits_PV: With the gradient that trains the student.
        projected_logits_PV: What the teacher says in the student's space, with the gradient that
            trains the loss's own weights.
        label_P: The labels.
        temperature: Divides both in the comparison.
        has_hard: Whether the hard label stands in where the projected teacher says another token.

    Returns:
        (P,) loss.
    """
    dtype = torch.promote_types(student_logits_PV.dtype, projected_logits_PV.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    student_logits_PV, projected_logits_PV = (
        x.to(dtype) for x in (student_logits_PV, projected_logits_PV)
    )
    own_P = nn.functional.cross_entropy(projected_logits_PV, label_P, reduction="none")
    is_right_P = projected_logits_PV.detach().argmax(-1) == label_P
    q_PV = (projected_logits_PV.detach() / temperature).log_softmax(-1)
    p_PV = (student_logits_PV / temperature).log_softmax(-1)
    # 0 log 0 is 0: a head may exclude tokens.
    kl_P = (q_PV.exp() * (q_PV - p_PV)).where(q_PV > -torch.inf, 0.0).sum(-1)
    other_P = torch.zeros_like(kl_P)
    if has_hard:
        other_P = nn.functional.cross_entropy(student_logits_PV, label_P, reduction="none")
    return own_P + torch.where(is_right_P, kl_P, other_P)


@loss(
    needs={"hidden", "embedding"},
    pairs="labels",
    logits=True,
    module=lambda widths, _options: CrossModelAttention(widths),
    options=(
        Option(
            "dskd_temperature",
            2.0,
            "Temperature of both sides where dskd compares them.",
            expected="a number above 0",
            is_valid=lambda t: 0 < t < float("inf"),
        ),
        Option(
            "dskd_wrong",
            "hard",
            "What dskd puts where the teacher, in the student's space, says another token than the "
            "text: hard, the label itself, as at any label that a loss does not cover; or none, as "
            "in the paper.",
            choices=("hard", "none"),
        ),
        RATE,
    ),
    cited=Paper("2406.17328", "Dual-Space Knowledge Distillation for Large Language Models"),
    order=9,
)
def LOSS(teacher: Teacher, student: Student, options: Options) -> Tensor:
    """Compare the student with the teacher's states, brought into its space by learned weights."""
    return dskd(
        student.logits(),
        student.logits_of(student.made("projected")),
        teacher["label"],
        options["dskd_temperature"],
        has_hard=options["dskd_wrong"] == "hard",
    )
