"""The weight of each pair of a loss in its term, where a run weighs tokens.

:mod:`distill.data.token_weights` says what they are. Those that the student has a part in are
scaled here, over the pairs of each sequence, none of which a cut of the batch then divides.

Shape legend: N = labels, P = pairs, S = sequences.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from distill.data.token_weights import PEAK, WEIGHT
from distill.head.query import HeadAnswer


class Sequences(NamedTuple):
    """Which sequence each label belongs to.

    Attributes:
        number_N: (N,) int64, below `size`.
        size: Of a batch.
    """

    number_N: Tensor
    size: int


def weight_of_each(
    arrays: Mapping[str, Tensor], answer: HeadAnswer, sequences: Sequences | None
) -> Tensor | None:
    """Find (P,) the weights of pairs, without gradient; None where all weigh the same."""
    if WEIGHT in arrays:
        return arrays[WEIGHT]
    if PEAK not in arrays:
        return None
    assert answer.entropy_N is not None
    assert sequences is not None
    index_P = arrays["index"]
    raw_P = answer.entropy_N.detach()[index_P] * arrays[PEAK]
    number_P = sequences.number_N[index_P]
    total_S = raw_P.new_zeros(sequences.size).index_add(0, number_P, raw_P)
    count_S = torch.zeros_like(total_S).index_add(0, number_P, torch.ones_like(raw_P))
    total_P = total_S[number_P]
    scaled_P = raw_P * (count_S[number_P] / total_P.where(total_P > 0, 1))
    return scaled_P.where(total_P > 0, 1)
