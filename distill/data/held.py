"""Number the sequences that a run reads, without a list of them.

Mostly nearly all sequences of a store are read, so what is kept are the few that are not: of a
billion, a list would take eight gigabytes in every process.

Shape legend: n = sequences of the store, m = those that are left out.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Held:
    """The numbers of the sequences that are held, ascending: number i of them is `self[i]`.

    Args:
        held_n: Whether each sequence is held.
    """

    def __init__(self, held_n: npt.NDArray[np.bool_]) -> None:
        self._count = int(np.count_nonzero(held_n))
        self._listed: Ints | None = None
        self._before_m: Ints = np.zeros(0, np.int64)
        if 2 * self._count < len(held_n):
            self._listed = np.flatnonzero(held_n)
        else:
            left_out = np.flatnonzero(~held_n)
            # How many that are held stand before each that is not.
            self._before_m = left_out - np.arange(len(left_out))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> int:
        """Return the number of a sequence in the store.

        Raises:
            IndexError: No so many are held.
        """
        if not -self._count <= i < self._count:
            raise IndexError(f"sequence {i} of {self._count}")
        i %= self._count
        if self._listed is not None:
            return int(self._listed[i])
        return i + int(np.searchsorted(self._before_m, i, side="right"))

    def of(self, values_n: Ints) -> Ints:
        """Take the values of those that are held; all of them are not copied."""
        if self._listed is not None:
            return values_n[self._listed]
        if not len(self._before_m):
            return values_n
        return np.delete(values_n, self._before_m + np.arange(len(self._before_m)))
