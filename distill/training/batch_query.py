"""The query to a student's head: all that the losses of a batch ask of it, at once.

Shape legend: N = labels, P = pairs of a loss, K = ids that a loss asks for, V = student vocabulary.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from distill.data.token_weights import PEAK
from distill.head.query import HeadQuery, Lookup, Partition, Ranking
from distill.losses import find
from distill.losses.loss import Ask, Options
from distill.losses.uses import loss_of
from logitstore.errors import InputError

Batch = Mapping[str, Any]
_NO_PARTITIONS: Mapping[str, Partition] = MappingProxyType({})


def query_of(
    batch: Batch, options: Options, partitions: Mapping[str, Partition] = _NO_PARTITIONS
) -> HeadQuery:
    """Join all that the terms of this batch, which is unpacked, need of the student.

    Args:
        batch: The batch, on a device.
        options: Options of losses.
        partitions: What the ids of a loss are events of, by the loss's name and on the batch's
            device. The ids of other losses are tokens.
    """
    rows_N, teacher = batch["rows"], batch["teacher"]
    labels_N = batch["labels"].flatten()[rows_N + 1].long()  # row t - 1 predicts token t
    asks = {name: find(name).ask(arrays, options) for name, arrays in teacher.items()}
    indices = {name: arrays["index"] for name, arrays in teacher.items()}
    columns = max((ask.columns for ask in asks.values()), default=0)
    return HeadQuery(
        labels_N,
        max((ask.top_k for ask in asks.values()), default=0),
        _where_top_k(asks, indices, rows_N),
        _columns_of_top_k(asks, partitions),
        lookups={
            name: _lookup(ask, ask.ids_PK, indices[name], len(rows_N), partitions.get(name))
            for name, ask in asks.items()
            if ask.ids_PK is not None
        },
        ranking=Ranking(batch["example"], len(batch["aligned"]), columns) if columns else None,
        scaled_top_k=max((ask.scaled_top_k for ask in asks.values()), default=0),
        has_entropy=any(PEAK in arrays for arrays in teacher.values()),
        has_logits=any(ask.has_logits for ask in asks.values()),
    )


def _where_top_k(
    asks: Mapping[str, Ask], indices: Mapping[str, Tensor], rows_N: Tensor
) -> Tensor | None:
    """Mark (N,) the labels at which some loss wants the largest log-probabilities."""
    wanting = [indices[name] for name, ask in asks.items() if ask.top_k]
    if not wanting:
        return None
    wanted_N = torch.zeros_like(rows_N, dtype=torch.bool)
    for index_P in wanting:
        wanted_N[index_P] = True
    return wanted_N


def _columns_of_top_k(
    asks: Mapping[str, Ask], partitions: Mapping[str, Partition]
) -> Tensor | None:
    """Find (V,) the tokens that the largest log-probabilities are chosen from; None: all.

    Raises:
        InputError: Two losses choose from different ones, and a head answers once.
    """
    asking = [name for name, ask in asks.items() if ask.top_k]
    chosen = [
        partitions.get(name) if asks[name].has_top_of_first_event else None for name in asking
    ]
    if not any(chosen):
        return None
    if any(each is not chosen[0] for each in chosen):
        losses = list(dict.fromkeys(map(loss_of, asking)))
        which = "Train with one of them." if len(losses) > 1 else "Train from one store."
        raise InputError(
            f"--loss {','.join(losses)}: each reads the student's most probable tokens, and not "
            f"among the same ones, which one answer of its head cannot have. {which}"
        )
    assert chosen[0] is not None
    return chosen[0].of_V == 0


def _lookup(
    ask: Ask, ids_PK: Tensor, index_P: Tensor, labels: int, partition: Partition | None
) -> Lookup:
    """Lay the ids of a loss's pairs on the labels that the pairs lie on."""
    ids_NK = ids_PK.new_full((labels, ids_PK.shape[1]), -1)
    ids_NK[index_P] = ids_PK
    return Lookup(ids_NK, ask.temperature, ask.has_rest, partition)
