"""Runs and ragged lists, each as flat arrays.

A ragged list is a count for each record and one flat array of all their members, in order.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


Array = npt.NDArray[Any]


def lists_of(count_n: Ints, chosen: Ints, *flat: Array) -> tuple[Ints, list[Any]]:
    """Take the lists of some records, in that order: their counts, and each flat array's members.

    Args:
        count_n: (n,) members of each record.
        chosen: Numbers of the records to take.
        flat: (m,) each, m the sum of counts.
    """
    count = count_n[chosen]
    if len(chosen) == len(count_n) and (chosen == np.arange(len(chosen))).all():
        return count, list(flat)
    width = int(count_n[0]) if len(count_n) else 0
    if (count_n == width).all():  # whole rows of a rectangle are faster to take
        return count, [values.reshape(len(count_n), width)[chosen].reshape(-1) for values in flat]
    source = runs(np.cumsum(count_n)[chosen] - count, np.cumsum(count_n)[chosen])[1]
    return count, [values[source] for values in flat]


def runs(first: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """List first..stop-1 of every run, one after the other: (number of the run, member)."""
    count = stop - first
    run = np.repeat(np.arange(len(first)), count)
    return run, np.arange(len(run)) + np.repeat(first + count - np.cumsum(count), count)
