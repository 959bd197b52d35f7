"""Ragged lists: the flat form in which a teacher's entries travel to the device.

Records have different numbers of entries, and a map of vocabularies merges some. As rectangles they
would be as wide as the longest, so batches hold them flat, with a count for each pair, and
:func:`rectangles` makes them rectangles on the device:

    X_count  [2, 3]      X_ids  [a, b, c, d, e]       rectangle  [[a, b, -], [c, d, e]]

`X_slots` is 0, 1, … K - 1, so that its length tells the width without waiting for the device.

Integers have 32 bits until they index something on the device: torch's own int64 would be twice the
size of the records they come from.

Shape legend: P = pairs of a loss, K = the largest count, M = sum of counts.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from distill.alignment.runs import Array

#: Endings of the names of two arrays: the length of each list, and the slots of the longest.
_COUNT, _SLOTS = "_count", "_slots"


def rectangles(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make a loss's flat arrays rectangles (P, K), and int64 those that index.

    Ids stay int32: they are most of the bytes, and become int64 with the logits of a chunk.

    Args:
        arrays: As :func:`tensors_of` makes them, on the device. Without counts they are rectangles
            already.
    """
    made: dict[str, Tensor] = {}
    lists = _lists(arrays)
    for key, values in arrays.items():
        owner = next((name for name in lists if key.startswith(f"{name}_")), None)
        if owner is None:
            made[key] = values.long() if values.dtype == torch.int32 else values
        elif key not in (owner + _COUNT, owner + _SLOTS):
            count_P, slots_K = arrays[owner + _COUNT], arrays[owner + _SLOTS]
            made[key] = _rectangle(values, count_P, slots_K, _filler(key, values))
    return made


def _lists(arrays: Iterable[str]) -> list[str]:
    """List the names of the flat lists, those that have a count."""
    return [key.removesuffix(_COUNT) for key in arrays if key.endswith(_COUNT)]


def _filler(key: str, values: Tensor) -> float:
    """Choose the padding of shorter lists: -inf, no token (-1), or a count of 0."""
    if values.is_floating_point():
        return -math.inf
    return -1 if key.endswith("_ids") else 0


def _rectangle(values_M: Tensor, count_P: Tensor, slots_K: Tensor, filler: float) -> Tensor:
    shape = (len(count_P), len(slots_K))
    if len(values_M) == shape[0] * shape[1]:  # nothing is missing
        return values_M.view(shape)
    # No size depends on values on the device, so this does not wait for a GPU.
    return values_M.new_full(shape, filler).masked_scatter_(slots_K < count_P[:, None], values_M)


def tensors_of(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Make tensors of a loss's arrays: integers of 32 bits, and for each count its slots."""
    tensors = {key: _tensor(array) for key, array in arrays.items()}
    for name in _lists(arrays):
        longest = int(arrays[name + _COUNT].max(initial=0))
        tensors[name + _SLOTS] = torch.arange(longest, dtype=torch.int32)
    return tensors


def narrow(array: Array) -> Array:
    """Convert int64 to int32: ids, and counts in a batch, are far below the limit of 32 bits."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(narrow(array)))
