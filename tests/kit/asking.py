"""What the student's head is asked in tests, and the answer by definition."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.head.query import Found, HeadAnswer, HeadQuery, Lookup, Ranking
from tests.kit.families import V

B, T = 3, 11


class Question(NamedTuple):
    inputs: dict[str, Tensor]
    rows_N: Tensor
    query: HeadQuery


def question(top_k: int = 5, width: int = V) -> Question:
    """A right-padded batch; supervised rows in no simple order; ids ragged, one row of padding."""
    gen = torch.Generator().manual_seed(1)
    ids = torch.randint(1, width, (B, T), generator=gen)
    lengths = torch.tensor([T, T - 3, 4])
    mask = torch.arange(T) < lengths[:, None]
    rows = mask.flatten().nonzero().squeeze(1)[torch.randperm(int(mask.sum()), generator=gen)][:17]
    lookup = torch.stack([torch.randperm(width, generator=gen)[:6] for _ in rows])
    lookup[torch.rand(lookup.shape, generator=gen) < 0.3] = -1
    lookup[4] = -1
    query = HeadQuery(
        labels_N=torch.randint(0, width, (len(rows),), generator=gen),
        top_k=top_k,
        top_k_mask_N=torch.rand(len(rows), generator=gen) < 0.7,
        lookups={"ids": Lookup(lookup), "tempered": Lookup(lookup, 2.5)},
        ranking=Ranking(rows // T, B, 7),
        scaled_top_k=6,
        has_entropy=True,
    )
    inputs = {"input_ids": ids * mask, "attention_mask": mask.long()}
    return Question(inputs, rows, query)


def definition(logits_MV: Tensor, rows_N: Tensor, query: HeadQuery) -> HeadAnswer:
    """Row by row in float64, from logits; the mass outside the ids summed token by token."""
    rows = [logits_MV[row].double() for row in rows_N.tolist()]
    labels, tops, scaled, entropy = [], [], [], []
    for n, logits_V in enumerate(rows):
        logprobs_V = logits_V.log_softmax(-1)
        labels.append(logprobs_V[query.labels_N[n]])
        wanted = query.top_k_mask_N is None or bool(query.top_k_mask_N[n])
        best = list(logprobs_V.sort(descending=True).values[: query.top_k]) if wanted else []
        tops.append(torch.stack(best + [_minus_inf()] * (query.top_k - len(best))))
        if query.scaled_top_k:
            scaled_V = (logits_V / (logits_V.std() + 1e-4)).log_softmax(-1)
            most = list(scaled_V.sort(descending=True).values[: query.scaled_top_k])
            scaled.append(torch.stack(most + [_minus_inf()] * (query.scaled_top_k - len(most))))
        entropy.append(-(logprobs_V.exp() * logprobs_V).sum().detach())
    found = {name: _found(rows, each) for name, each in query.lookups.items()}
    columns = None if query.ranking is None else _columns(rows, query.ranking)
    return HeadAnswer(
        torch.stack(labels),
        torch.stack(tops),
        found=found,
        column_logprobs_Nk=columns,
        scaled_top_logprobs_NK=torch.stack(scaled) if scaled else None,
        entropy_N=torch.stack(entropy) if query.has_entropy else None,
    )


def _found(rows: list[Tensor], lookup: Lookup) -> Found:
    at_ids, rests = [], []
    for logits_V, ids in zip(rows, lookup.ids_NK.tolist(), strict=True):
        logprobs_V = (logits_V / lookup.temperature).log_softmax(-1)
        at_ids.append(torch.stack([logprobs_V[i] if i >= 0 else _minus_inf() for i in ids]))
        others = [v for v in range(len(logprobs_V)) if v not in ids]
        rests.append(logprobs_V[others].logsumexp(-1) if others else _minus_inf())
    return Found(torch.stack(at_ids), torch.stack(rests) if lookup.has_rest else None)


def _columns(rows: list[Tensor], ranking: Ranking) -> Tensor:
    """Log-probabilities of z / (std + 1e-4) at the columns that the sequence's rows rank first."""
    logprobs = [(x / (x.std() + 1e-4)).log_softmax(-1) for x in rows]
    chosen = []
    for sequence, logprobs_V in zip(ranking.sequence_N.tolist(), logprobs, strict=True):
        mates = [
            x.exp() for x, s in zip(logprobs, ranking.sequence_N, strict=True) if s == sequence
        ]
        order = torch.stack(mates).sum(0).argsort(descending=True)[: ranking.k]
        padding = [_minus_inf()] * (ranking.k - len(order))
        chosen.append(torch.stack([*logprobs_V[order], *padding]))
    return torch.stack(chosen)


def _minus_inf() -> Tensor:
    return torch.tensor(-torch.inf, dtype=torch.float64)


def fields(answer: HeadAnswer) -> dict[str, Tensor]:
    """Every tensor of an answer by name."""
    flat = {name: x for name, x in vars(answer).items() if isinstance(x, Tensor)}
    for name, (at_ids_NK, rest_N) in answer.found.items():
        flat |= {f"{name}.at_ids": at_ids_NK}
        flat |= {} if rest_N is None else {f"{name}.rest": rest_N}
    return flat


def some_loss(answer: HeadAnswer) -> Tensor:
    """Feels every number of an answer, each with a weight of its own; -inf counts nothing."""
    parts = []
    for value in fields(answer).values():
        weights = torch.arange(1, value.numel() + 1, dtype=value.dtype).reshape(value.shape).cos()
        parts.append((weights * value.masked_fill(value == -torch.inf, 0)).sum())
    return torch.stack(parts).sum()


def gradients(model: nn.Module, answer: HeadAnswer) -> dict[str, Tensor]:
    model.zero_grad()
    some_loss(answer).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(got: Any, want: Any, *, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got, want, check_dtype=False, rtol=rtol, atol=atol)
