"""Answers to a query, a chunk of positions at a time, with a gradient computed without autograd.

A *slope*, here and in the files beside this one, is the gradient of the loss with respect to one
value. There are two ways:

* :func:`recomputed` answers the whole query. Its backward pass makes the logits of each chunk
  again, when the slopes of the answers are known.
* :func:`in_the_forward` is for a loss that can be taken chunk by chunk, with weights known
  beforehand. As soon as a chunk is answered its loss and its slopes are known too, so the gradient
  of hidden states and weights is taken immediately and the backward pass only scales it. Logits
  are made once instead of twice, which saves a quarter of the arithmetic.

A ranking of columns over sequences needs all positions of a sequence first. With `recomputed`, a
first round adds up the columns' mass; the logits at the chosen columns are then a small product of
their own, if the head is a plain linear layer. With `in_the_forward`, a chunk must hold whole
sequences.

Shape legend: N = positions; D = hidden width; c = positions of a chunk; V = vocabulary; S =
sequences; k = columns of a ranking.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from distill.head.logit_rows import LogitRows
from distill.head.output_head import OutputHead, Pull, without_autocast
from distill.head.query import (
    COLUMNS,
    LOGITS,
    HeadAnswer,
    HeadQuery,
    Ranking,
    rank_columns,
    widened,
)
from distill.head.scaled_rows import ScaledRows

_NOTHING_MADE: Mapping[str, Tensor] = MappingProxyType({})
#: The loss of a chunk from its answer, for positions [start, stop).
Objective = Callable[[HeadAnswer, int, int], Tensor]


def recomputed(
    head: OutputHead, hidden_ND: Tensor, query: HeadQuery, chunk_tokens: int
) -> dict[str, Tensor]:
    """Answer a query as :func:`distill.head.query.answer_rows` does, chunk by chunk.

    Args:
        head: The model's head.
        hidden_ND: The hidden states that the head would read, at the positions of the query.
        query: What to compute at each position.
        chunk_tokens: Number of positions of a chunk.

    Returns:
        The tensors of the answer by name, with a gradient.
    """
    names: list[str] = []
    with without_autocast(hidden_ND):
        values = _Recomputed.apply(  # type: ignore[no-untyped-call]
            head, query, chunk_tokens, names, hidden_ND, *head.weights
        )
    return dict(zip(names, values, strict=True))


def in_the_forward(
    head: OutputHead,
    hidden_ND: Tensor,
    query: HeadQuery,
    ranges: Sequence[tuple[int, int]],
    objective: Objective,
    made: Mapping[str, Tensor] = _NOTHING_MADE,
) -> Tensor:
    """Add up `objective` over chunks, and compute the gradient of that sum along with it.

    Args:
        head: The model's head.
        hidden_ND: The hidden states that the head would read, at the positions of the query.
        query: What to compute at each position.
        ranges: The positions [start, stop) of each chunk, one after the other.
        objective: The loss of a chunk. It must not keep the answer, or a tensor with its graph.
        made: (N, …) tensors that go with the answer under their names, with their gradient.

    Returns:
        The loss, a scalar. Its backward pass can run once.
    """
    with without_autocast(hidden_ND):
        loss: Tensor = _InTheForward.apply(  # type: ignore[no-untyped-call]
            head,
            query,
            ranges,
            objective,
            tuple(made),
            hidden_ND,
            *head.weights,
            *made.values(),
        )
    return loss


def in_turn(
    head: OutputHead,
    hidden_ND: Tensor,
    query: HeadQuery,
    ranges: Sequence[tuple[int, int]],
    objective: Objective,
    made: Mapping[str, Tensor] = _NOTHING_MADE,
) -> Tensor:
    """Add up `objective` over chunks, where no gradient is wanted; the memory is that of one.

    Args:
        head: As for :func:`in_the_forward`, and so are the others.
        hidden_ND: Likewise.
        query: Likewise.
        ranges: Likewise.
        objective: Likewise.
        made: Likewise.
    """
    values = []
    with without_autocast(hidden_ND):
        for start, stop in ranges:
            rows = LogitRows(head.logits(hidden_ND[start:stop]), query.part(start, stop))
            answer = rows.answer | {name: each[start:stop] for name, each in made.items()}
            values.append(objective(HeadAnswer.of(answer, head.of_rows), start, stop))
            del rows  # before the next chunk's are made
    head.close()
    return torch.stack(values).sum()


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: OutputHead,
        query: HeadQuery,
        size: int,
        names: list[str],  # filled here: a Function returns tensors alone, and these name them
        hidden_ND: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        starts = range(0, max(len(hidden_ND), 1), size)  # at least one chunk, even if it is empty
        ctx.parts = [(slice(a, a + size), query.part(a, a + size)) for a in starts]
        ctx.head, ctx.columns_Sk, ctx.open = head, None, None
        ctx.save_for_backward(hidden_ND, *weights)
        if len(ctx.parts) > 1:
            answer, ctx.columns_Sk = _in_parts(head, hidden_ND, query, ctx.parts)
        elif any(ctx.needs_input_grad):  # within the memory of a chunk: nothing is made again
            logits_NV, pull = head.open(hidden_ND)
            rows = LogitRows(logits_NV, query)
            answer, ctx.open = rows.answer, (rows, pull)
        else:
            answer = LogitRows(head.logits(hidden_ND), query).answer
        if ctx.open is None:
            head.close()
        ctx.names = list(answer)
        names += answer
        return tuple(answer.values())

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, *weights = ctx.saved_tensors
        ctx.head.sums = [None] * len(weights)
        slope_ND = torch.empty_like(hidden_ND)
        for places, part in ctx.parts:
            rows, pull = ctx.open or _opened(ctx.head, hidden_ND[places], part, ctx.columns_Sk)
            answer_slopes = dict(zip(ctx.names, (slope[places] for slope in slopes), strict=True))
            slope_ND[places] = pull(rows.slope(answer_slopes))
        ctx.open = None  # overwritten by its slopes; a second backward pass makes it again
        ctx.head.close()
        return (None, None, None, None, slope_ND, *_sums(ctx.head, weights))


def _opened(
    head: OutputHead, hidden_cD: Tensor, part: HeadQuery, columns_Sk: Tensor | None
) -> tuple[LogitRows, Pull]:
    logits_cV, pull = head.open(hidden_cD)
    return LogitRows(logits_cV, part, columns_Sk), pull


def _in_parts(
    head: OutputHead,
    hidden_ND: Tensor,
    query: HeadQuery,
    parts: Sequence[tuple[slice, HeadQuery]],
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Answer chunk by chunk, and choose the columns of each sequence if there is a ranking."""
    answers: list[dict[str, Tensor]] = []
    scales: list[Tensor] = []
    mass_SV: Tensor | None = None
    for places, part in parts:
        logits_cV = widened(head.logits(hidden_ND[places]))
        rows = logits_cV.clone() if part.ranking is not None and part.has_logits else None
        if part.ranking is not None:
            if mass_SV is None:
                mass_SV = logits_cV.new_zeros(part.ranking.sequences, logits_cV.shape[1])
            # This subtracts each row's mean, which changes no log-probability computed below.
            scales.append(ScaledRows(logits_cV, part.ranking, mass_SV).scale_c2)
        answers.append(LogitRows(logits_cV, replace(part, ranking=None)).answer)
        if rows is not None:
            answers[-1][LOGITS] = rows
    answer = {name: torch.cat([each[name] for each in answers]) for name in answers[0]}
    if query.ranking is None or mass_SV is None:
        return answer, None
    columns_Sk = rank_columns(mass_SV, query.ranking.k)
    scale_N2, ids_Nk = torch.cat(scales), columns_Sk[query.ranking.sequence_N]
    logits_Nk = _at_columns(head, hidden_ND, query.ranking, columns_Sk, parts)
    logprobs_Nk = logits_Nk * scale_N2[:, :1] - scale_N2[:, 1:]
    answer[COLUMNS] = logprobs_Nk.masked_fill(ids_Nk < 0, -torch.inf)
    return answer, columns_Sk


def _at_columns(
    head: OutputHead,
    hidden_ND: Tensor,
    ranking: Ranking,
    columns_Sk: Tensor,
    parts: Sequence[tuple[slice, HeadQuery]],
) -> Tensor:
    """Compute (N, k) the logits at the columns of each position's sequence; junk in padding."""
    columns_Sk = columns_Sk.clamp(min=0)
    order_N = ranking.sequence_N.argsort()
    lengths = ranking.sequence_N.bincount(minlength=ranking.sequences).tolist()
    pieces = []
    for ids_k, places in zip(columns_Sk, torch.split(order_N, lengths), strict=True):
        piece = head.columns(hidden_ND[places], ids_k)
        if piece is None:
            break
        pieces.append(widened(piece))
    else:
        in_order_Nk = torch.cat(pieces)
        return torch.empty_like(in_order_Nk).index_copy_(0, order_N, in_order_Nk)
    again = (
        widened(head.logits(hidden_ND[places])).gather(1, columns_Sk[part.ranking.sequence_N])
        for places, part in parts
        if part.ranking is not None
    )
    return torch.cat(list(again))


class _InTheForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: OutputHead,
        query: HeadQuery,
        ranges: Sequence[tuple[int, int]],
        objective: Objective,
        names: tuple[str, ...],
        hidden_ND: Tensor,
        *weights_and_made: Tensor,
    ) -> Tensor:
        count = len(weights_and_made) - len(names)
        weights, made = weights_and_made[:count], weights_and_made[count:]
        head.sums = [None] * len(weights)
        slope_ND = torch.empty_like(hidden_ND)
        made_slopes = [torch.zeros_like(each) for each in made]
        values = []
        for start, stop in ranges:
            logits_cV, pull = head.open(hidden_ND[start:stop])
            rows = LogitRows(logits_cV, query.part(start, stop))
            of_chunk = dict(zip(names, (each[start:stop] for each in made), strict=True))
            answer = rows.answer | of_chunk
            value, slopes = _with_slopes(objective, answer, start, stop, head.of_rows)
            values.append(value)
            for name, slope in zip(names, made_slopes, strict=True):
                slope[start:stop] = slopes.pop(name)
            slope_ND[start:stop] = pull(rows.slope(slopes))
            del logits_cV, rows, pull  # before the next chunk's are made
        head.close()
        ctx.slopes = (slope_ND, *_sums(head, weights), *made_slopes)
        return torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.slopes is None:
            raise RuntimeError(
                "the gradient was taken in the forward pass and is used up; run the forward again"
            )
        slopes, ctx.slopes = ctx.slopes, None
        return (None, None, None, None, None, *(x.mul_(slope.to(x.dtype)) for x in slopes))


def _with_slopes(
    objective: Objective,
    answer: dict[str, Tensor],
    start: int,
    stop: int,
    logits_of: Callable[[Tensor], Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a chunk, and its gradient with respect to each tensor of the answer."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in answer.items()}
    with torch.enable_grad():
        value = objective(HeadAnswer.of(leaves, logits_of), start, stop)
        slopes = torch.autograd.grad(
            value, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    return value.detach(), dict(zip(leaves, slopes, strict=True))


def _sums(head: OutputHead, weights: Sequence[Tensor]) -> list[Tensor]:
    """Take the gradient of each weight, in its own dtype, off the head."""
    gradients = [
        torch.zeros_like(weight) if total is None else total.to(weight.dtype)
        for total, weight in zip(head.sums, weights, strict=True)
    ]
    head.sums = [None] * len(weights)
    return gradients
