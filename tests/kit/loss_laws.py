"""What every loss must obey, as a table: a loss beside its definition and the cases it is tried on.

A test file of a loss lists its own under `LAWS`; tests/distill/losses/test_loss_laws.py tries all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import hypothesis.strategies as st
import torch
from torch import Tensor

from distill.losses.tail_kl import FLOOR_NATS

Tolerance = tuple[float, float]  # relative, absolute


@dataclass(frozen=True)
class Law:
    """A loss as its laws need it.

    Attributes:
        name: Of the loss, and its kind if it has several.
        function: The loss itself.
        arguments: Of it, for three positions or more: floats of whatever kind, and counts.
        cases: What to compare it with its definition on; a NamedTuple with `student_NV`.
        values: Of a case and the student's logits, whose dtype decides; (N,), or (2, N) with the
            certified bound.
        naive: The definition, likewise, in float64; a bound without gradient.
        float32: How close values and gradients must come.
        float64: Likewise.
        slopes: By how much more gradients may be off.
        same: Cases that differ in nothing that a loss should feel.
        same_within: How little they may differ, in float32.
        row: One position of a case, or one sequence.
        mates: How little its value may feel the others, in float64.
        saturated: Cases of a student that is sure, (1, V) logits of +-1e4.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    cases: st.SearchStrategy[Any]
    values: Callable[[Any, Tensor], Tensor]
    naive: Callable[[Any, Tensor], Tensor]
    float32: Tolerance = (1e-5, 1e-5)
    float64: Tolerance = (1e-10, 1e-10)
    slopes: float = 1.0
    same: Callable[[Any, st.DataObject], list[Any]] = lambda _case, _data: []
    same_within: Tolerance = (1e-5, 1e-5)
    row: Callable[[Any, int], Any] | None = None
    mates: Tolerance = (0.0, 1e-12)
    saturated: tuple[Any, ...] = ()

    def row_of(self, case: Any, i: int) -> Any:
        """Position i of a case alone: every list and tensor of it cut."""
        if self.row is not None:
            return self.row(case, i)
        own = (x[i : i + 1] if isinstance(x, Tensor | list) else x for x in case)
        return type(case)(*own)


def sure(best: int) -> Tensor:
    """(1, 32) logits of a student that is sure of one token."""
    logits = torch.full((1, 32), -1e4)
    logits[0, best] = 1e4
    return logits


# ---- divergences over buckets: some tokens, and all others as one ----


class Buckets(NamedTuple):
    """Student logits over V; target log-masses at distinct ids (-1 pads), and outside them."""

    student_NV: Tensor
    ids_NK: Tensor
    target_NK: Tensor
    target_rest_N: Tensor


def at_ids(student_NV: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the ids and of all other tokens, row by row."""
    rest = []
    for logprobs_V, ids_K in zip(student_NV.log_softmax(-1), ids_NK.tolist(), strict=True):
        others = [v for v in range(len(logprobs_V)) if v not in ids_K]
        minus_inf = logprobs_V.new_tensor(-torch.inf)
        rest.append(logprobs_V[others].logsumexp(-1) if others else minus_inf)
    picked_NK = student_NV.log_softmax(-1).gather(1, ids_NK.clamp(min=0))
    return picked_NK.masked_fill(ids_NK < 0, -torch.inf), torch.stack(rest)


@st.composite
def buckets(draw: st.DrawFn, min_width: int = 1) -> Buckets:
    """Ragged ids, targets with and without a rest, flat to very peaked."""
    n, width = draw(st.integers(1, 4)), draw(st.integers(min_width, 24))
    k = draw(st.integers(1, 26))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    student = draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(n, width, generator=gen)
    ids = torch.full((n, k), -1)
    target = torch.full((n, k), -torch.inf)
    rest = torch.full((n,), -torch.inf)
    for i in range(n):
        count = draw(st.integers(0, min(k, width)))
        ids[i, :count] = torch.randperm(width, generator=gen)[:count]
        has_rest = draw(st.booleans()) or count == 0
        logits = draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(count + 1, generator=gen)
        if not has_rest:
            logits[-1] = -torch.inf
        logmass = logits.log_softmax(-1)
        target[i, :count], rest[i] = logmass[:-1], logmass[-1]
    slots = torch.randperm(k, generator=gen)  # padding may stand anywhere
    return Buckets(student, ids[:, slots], target[:, slots], rest)


def same_buckets(case: Buckets, data: st.DataObject) -> list[Buckets]:
    """An offset of the logits, another order of the slots, more padding."""
    order = torch.tensor(data.draw(st.permutations(range(case.ids_NK.shape[1]))))
    pad = (0, data.draw(st.integers(0, 3)))
    return [
        case._replace(student_NV=case.student_NV + 7.0),
        case._replace(ids_NK=case.ids_NK[:, order], target_NK=case.target_NK[:, order]),
        case._replace(
            ids_NK=torch.nn.functional.pad(case.ids_NK, pad, value=-1),
            target_NK=torch.nn.functional.pad(case.target_NK, pad, value=-torch.inf),
        ),
    ]


def bucket_value(q: Tensor, p: Tensor, kind: str) -> Tensor:
    """One bucket's share of the divergence; of what no student could answer, nothing."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return a * (a / b).log() if a > 0 else a * 0

    if kind == "forward":
        return kl(q, p) if p > 0 else p * 0
    if kind == "reverse":
        return kl(p, q.clamp(min=math.exp(FLOOR_NATS)))
    share = {"jsd": 0.5, "skew": 0.1}[kind]
    m = share * q + (1 - share) * p
    return kl(q, m) if kind == "skew" else (kl(q, m) + kl(p, m)) / 2


def naive_buckets(case: Buckets, student_NV: Tensor, kind: str) -> Tensor:
    """The definition in float64, one position and one bucket at a time."""
    losses = []
    for logits_V, ids, target_K, rest in zip(student_NV, *case[1:], strict=True):
        p_V, loss = logits_V.softmax(-1), logits_V.sum() * 0
        others = [v for v in range(len(p_V)) if v not in ids.tolist()]
        found = [
            (target.exp(), p_V[token])
            for token, target in zip(ids.tolist(), target_K.double(), strict=True)
            if token >= 0
        ]
        for q, p in [*found, (rest.double().exp(), p_V[others].sum())]:
            loss = loss + bucket_value(q, p, kind)
        losses.append(loss)
    return torch.stack(losses)


def buckets_law(
    name: str, function: Callable[..., Tensor], kind: str, float32: Tolerance = (1e-5, 1e-5)
) -> Law:
    """The law of a divergence over buckets: (student at ids, outside, target at ids, outside)."""

    def values(case: Buckets, student_NV: Tensor) -> Tensor:
        teacher = (case.target_NK.to(student_NV.dtype), case.target_rest_N.to(student_NV.dtype))
        return function(*at_ids(student_NV, case.ids_NK), *teacher)

    ids, target = torch.tensor([[3, 5, -1]]), torch.tensor([[-0.1, -3.0, -torch.inf]])
    gen = torch.Generator().manual_seed(0)
    sides = [torch.randn(3, 301, generator=gen).log_softmax(-1) for _ in range(2)]
    return Law(
        name,
        function,
        tuple(part for x in sides for part in (x[:, :-1], x[:, -1])),
        buckets(),
        values,
        lambda case, student_NV: naive_buckets(case, student_NV, kind),
        float32=float32,
        same=same_buckets,
        saturated=tuple(
            Buckets(sure(best), ids, target, torch.tensor([rest]))
            for best in (3, 20)
            for rest in (-3.0, -torch.inf)  # and a teacher that rules out all but its entries
        ),
    )
