"""Lists of different lengths, one after the other: how a teacher's entries travel to the device.

Records keep different numbers of entries, and a map of vocabularies merges some. As rectangles they
would be as wide as the longest, so batches hold them flat, with a count for each pair, and become
rectangles on the device, by :func:`rectangles`:

    X_count  [2, 3]      X_ids  [a, b, c, d, e]       rectangle  [[a, b, -], [c, d, e]]

`X_slots` is as wide: 0, 1, … K - 1. So the width is known without asking the device for it.

Integers are as small as they can be until they index something there: torch's own would be twice
the size of the record they come from.

Shape legend: P = pairs of a loss, K = the largest count, M = sum of counts.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from distill.alignment.runs import Array

#: How an array is called that counts the members of lists, and one as wide as they are.
_COUNT, _SLOTS = "_count", "_slots"


def rectangles(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A loss's arrays as its terms read them: (P, K) instead of flat, int64 where they index.

    Ids stay int32: they are the bulk, and are widened with the logits of a chunk.

    Args:
        arrays: As :func:`tensors_of` makes them, on the device. Without counts they are rectangles
            already.
    """
    found: dict[str, Tensor] = {}
    lists = _lists(arrays)
    for key, values in arrays.items():
        owner = next((name for name in lists if key.startswith(f"{name}_")), None)
        if owner is None:
            found[key] = values.long() if values.dtype == torch.int32 else values
        elif key not in (owner + _COUNT, owner + _SLOTS):
            count_P, slots_K = arrays[owner + _COUNT], arrays[owner + _SLOTS]
            found[key] = _rectangle(values, count_P, slots_K, _filler(key, values))
    return found


def _lists(arrays: Iterable[str]) -> list[str]:
    """List what there are lists of, flat with a count."""
    return [key.removesuffix(_COUNT) for key in arrays if key.endswith(_COUNT)]


def _filler(key: str, values: Tensor) -> float:
    """Choose what stands where a list is shorter: no token, no mass, or a count of 0."""
    if values.is_floating_point():
        return -math.inf
    return -1 if key.endswith("_ids") else 0


def _rectangle(values_M: Tensor, count_P: Tensor, slots_K: Tensor, filler: float) -> Tensor:
    shape = (len(count_P), len(slots_K))
    if len(values_M) == shape[0] * shape[1]:  # nothing is missing
        return values_M.view(shape)
    # No sizes are asked for, so a GPU is not waited for.
    return values_M.new_full(shape, filler).masked_scatter_(slots_K < count_P[:, None], values_M)


def tensors_of(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """A loss's arrays as they travel: integers of 32 bits, and beside each count its slots."""
    found = {key: _tensor(array) for key, array in arrays.items()}
    for name in _lists(arrays):
        longest = int(arrays[name + _COUNT].max(initial=0))
        found[name + _SLOTS] = torch.arange(longest, dtype=torch.int32)
    return found


def narrow(array: Array) -> Array:
    """Integers of 32 bits: ids, and what is counted in a batch, are far below their limit."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(narrow(array)))
