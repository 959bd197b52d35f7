"""DSKD with cross-model attention, in one space or both: hidden states, any tokenizer.

At each of the student's labels i and each of the teacher's records j of the same text, with e the
rows of a model's input embedding (x the token read last, y the token predicted), h the teacher's
last hidden state and a bar for division by its standard deviation over the sequence:

    Q_i = W_q [e(x_i); e(y_i)]          of the student        K_j = [e(x_j); e(y_j)] bar, teacher's
    V_j = W_v (h_j bar + e(y_j) bar)                          A = softmax(Q K^T / sqrt(2 D)) over j
    t_i = the student's own head of (A V)_i: what the teacher says, in the student's space

    loss = CE(t_i, y_i)  +  [argmax t_i = y_i] KL(softmax(sg t_i / T) || softmax(z_i / T))

In the student's space that is all. In the teacher's, which needs its output embedding in the store
(`capture --with-lm-head`), each record j is given what the student says by the same attention, over
its labels i, and compared with all of the teacher's logits there (:mod:`teacher_head`):

    s_j = softmax over i of (Q K^T / sqrt(2 D))_ij  W_s h^S_i          h^S the student's last state

    loss += sum over j of KL(softmax(z^T_j / T) || softmax(head_T s_j / T)) / labels of the sequence

The first term trains W_q and W_v alone (the head has no gradient there, nor have embeddings), the
second the student alone, the third the student, W_s and W_q. W_q, W_v and W_s are the loss's own
weights: trained with the student at `--loss_learning_rate`, saved beside it.

Where t says another token than the text, the paper compares nothing. That leaves labels without a
target, which makes a trained student worse (see `--uncovered`), so the hard label stands in there;
`--dskd_wrong none` is the paper's. The paper's sum is half of that and half of CE, which is weight
1 beside CE here; its T is 2, and KL is not multiplied with T^2. Deviations are the sequence's own
here, not the batch's, so that batch mates change nothing.

The teacher's output embedding is V x D weights beside the student on its device, under the
teacher's licence; it is not trained. Hidden states of a store are rounded: each number of h and e
by at most 1/16 of itself in fp8, 1/256 in bf16.

Ref: arXiv:2406.17328. Shape legend: N = labels of a batch, P = those of a chunk; l, r = labels and
records of one sequence; D = width of the teacher, V = student vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from distill.losses.declared import loss
from distill.losses.given import arrays_for
from distill.losses.loss import Inside, Option, Options, Paper, Student, Teacher, Widths
from distill.losses.own_rate import RATE
from distill.losses.teacher_head import TeacherHead
from distill.losses.whole import by_sequence, decoded, embedded


class CrossModelAttention(nn.Module):
    """The projections, and the attention between them.

    Args:
        widths: Of both models.
        options: Of the run.
    """

    def __init__(self, widths: Widths, options: Options) -> None:
        super().__init__()
        if widths.teacher_embedding != widths.teacher:
            raise ValueError(
                "it adds the teacher's hidden states to its embeddings, and in this store these "
                f"have {widths.teacher} and {widths.teacher_embedding} numbers"
            )
        self.query = nn.Linear(2 * widths.student_embedding, 2 * widths.teacher)
        self.value = nn.Linear(widths.teacher, widths.student)
        self._head: TeacherHead | None = None  # no parameter, nor a buffer: it stays as it is
        if widths.lm_head is not None and options["dskd_space"] != "student":
            self._head = TeacherHead(widths.lm_head())
            self.into_teacher = nn.Linear(widths.student, widths.teacher)

    def forward(self, inside: Inside, teacher: Teacher, options: Options) -> dict[str, Tensor]:
        """Bring the teacher to each of the student's labels, and the student to its records."""
        pair_N = torch.cat([inside.embed(inside.read_N), inside.embed(inside.label_N)], 1)
        states = decoded(teacher, "whole")
        read, target = (embedded(teacher, f"whole_{name}") for name in ("read", "ids"))
        student = inside.hidden_ND if self._head is None else self.into_teacher(inside.hidden_ND)
        split = by_sequence(inside, teacher, [self.query(pair_N), student], [states, read, target])
        attended, brought = [], []
        for query_l, student_l, state_r, read_r, target_r in zip(*split, strict=True):
            if not len(state_r):
                attended.append(states.new_zeros(len(query_l), self.value.out_features))
                continue
            key_r = at_one_scale(torch.cat([read_r, target_r], 1))
            value_r = self.value(at_one_scale(state_r) + at_one_scale(target_r))
            attended.append(cross_attention(query_l, key_r, value_r))
            if self._head is not None and len(query_l):
                brought.append(cross_attention(key_r, query_l, student_l))
        # A batch without labels or records has a gradient, too: 0, which other processes wait for.
        nothing = self.value(states.new_zeros(0, self.value.in_features))
        nothing = nothing + self.query(pair_N[:0]).sum()
        made = {"projected": torch.cat([nothing, *attended])}
        if self._head is not None:
            made["teacher_space"] = self._apart(brought, student, inside, teacher, options)
        return made

    def _apart(
        self,
        brought: list[Tensor],
        student_ND: Tensor,
        inside: Inside,
        teacher: Teacher,
        options: Options,
    ) -> Tensor:
        """Compare (N,) in the teacher's space: a label has its share of what its sequence has."""
        assert self._head is not None
        self._head.to(student_ND.device)
        record_m = teacher["whole_sequence"]
        labels = torch.bincount(inside.sequence_N, minlength=_count(inside.sequence_N, record_m))
        is_there_m = labels[record_m] > 0
        # Of an empty batch they have no width.
        states = decoded(teacher, "whole")[is_there_m].reshape(-1, self.value.in_features)
        rows = torch.cat([student_ND[:0], *brought])
        kl_m = self._head.distance(rows, states, options["dskd_temperature"])
        of_sequence = kl_m.new_zeros(len(labels)).index_add(0, record_m[is_there_m], kl_m)
        share_N: Tensor = (of_sequence / labels.clamp(min=1))[inside.sequence_N]
        return share_N


def cross_attention(query_l: Tensor, key_r: Tensor, value_r: Tensor) -> Tensor:
    """Compute softmax(Q K^T / sqrt(width of K)) V, rows of one sequence."""
    weights_lr = (query_l @ key_r.T / math.sqrt(key_r.shape[1])).softmax(-1)
    attended: Tensor = weights_lr @ value_r
    return attended


def _count(*sequences: Tensor) -> int:
    """Count the sequences that some numbers are of."""
    return 1 + max((int(each.max()) for each in sequences if len(each)), default=-1)


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


_NEEDS = frozenset({"hidden", "embedding"})


@loss(
    needs=lambda options: _NEEDS | ({"lm head"} if options["dskd_space"] == "both" else set()),
    pairs="labels",
    arrays=arrays_for(_NEEDS, "labels", 0, has_map=False),
    logits=True,
    module=CrossModelAttention,
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
        Option(
            "dskd_space",
            "auto",
            "Where dskd compares: in the student's space; in both, which needs a store that was "
            "captured with --with-lm-head, and its V x D weights on the device; auto: both where "
            "the store has them.",
            choices=("auto", "student", "both"),
        ),
        RATE,
    ),
    cited=Paper("2406.17328", "Dual-Space Knowledge Distillation for Large Language Models"),
    order=9,
)
def LOSS(teacher: Teacher, student: Student, options: Options) -> Tensor:
    """Compare the student with the teacher's states, by weights that bring them together."""
    value_P = dskd(
        student.logits(),
        student.logits_of(student.made("projected")),
        teacher["label"],
        options["dskd_temperature"],
        has_hard=options["dskd_wrong"] == "hard",
    )
    return value_P + student.made("teacher_space") if student.has_made("teacher_space") else value_P
