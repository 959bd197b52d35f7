"""Lists of different lengths, one after the other: how a teacher's entries travel to the device.

Records keep different numbers of entries, and a map of vocabularies merges some. As rectangles they
would be as wide as the longest, so batches hold them flat, with a count for each pair, and become
rectangles on the device, by :func:`rectangles`:

    count  [2, 3]        flat  [a, b, c, d, e]        rectangle  [[a, b, -], [c, d, e]]

`slots` is what is wide: 0, 1, … K - 1. So the width is known without asking the device for it.

Integers are as small as they can be until they index something there: torch's own would be twice
the size of the record they come from.

Shape legend: P = pairs of a loss, K = the largest count, M = sum of counts.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from distill.alignment.runs import Array

#: Flat arrays, which array counts them, which one is as wide as they are, and what pads them.
_FLAT: dict[str, tuple[str, str, float]] = {
    "ids": ("count", "slots", -1),
    "logmass": ("count", "slots", -np.inf),
    "entry_logprobs": ("count", "slots", -np.inf),
    "draw_ids": ("draw_count", "draw_slots", -1),
    "counts": ("draw_count", "draw_slots", 0),
}
#: Which of those arrays there are, for what is counted and how wide that is.
_COUNTS = {"count": "slots", "draw_count": "draw_slots"}


def rectangles(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A loss's arrays as its terms read them: (P, K) instead of flat, int64 where they index.

    Ids stay int32: they are the bulk, and are widened with the logits of a chunk.

    Args:
        arrays: As :func:`tensors_of` makes them, on the device. Without counts they are rectangles
            already.
    """
    found: dict[str, Tensor] = {}
    for key, values in arrays.items():
        count, slots, filler = _FLAT.get(key, ("", "", 0.0))
        if count in arrays:
            found[key] = _rectangle(values, arrays[count], arrays[slots], filler)
        elif key not in (*_COUNTS, *_COUNTS.values()):
            found[key] = values.long() if values.dtype == torch.int32 else values
    return found


def _rectangle(values_M: Tensor, count_P: Tensor, slots_K: Tensor, filler: float) -> Tensor:
    shape = (len(count_P), len(slots_K))
    if len(values_M) == shape[0] * shape[1]:  # nothing is missing
        return values_M.view(shape)
    # No sizes are asked for, so a GPU is not waited for.
    return values_M.new_full(shape, filler).masked_scatter_(slots_K < count_P[:, None], values_M)


def tensors_of(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """A loss's arrays as they travel: integers of 32 bits, and beside each count its slots."""
    found = {key: _tensor(array) for key, array in arrays.items()}
    for count, slots in _COUNTS.items():
        if count in arrays:
            found[slots] = torch.arange(int(arrays[count].max(initial=0)), dtype=torch.int32)
    return found


def narrow(array: Array) -> Array:
    """Integers of 32 bits: ids, and what is counted in a batch, are far below their limit."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(narrow(array)))
