"""The order in which a run reads its rows: a function of seed, epoch and the store's digest.

It depends on nothing else: no global generator, library version, worker or world size. So a run
that is resumed from a checkpoint, on any number of processes, needs to know only how far it was.

No list of all rows is made: up to a million are shuffled, and of more than that a keyed permutation
gives a window of the order at a time (:mod:`distill.data.permutation`).

Grouping rows by length leaves less padding in a batch. The rows of 64 steps of that order (or of a
quarter of an epoch if that is less) are sorted by length and cut into steps, and these steps are
shuffled. So an epoch still has every row once, other rows share a step in the next epoch, and a
step has the same rows on any number of processes.

Shape legend: n = rows, s = rows of a step.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from distill.data.permutation import KeyedPermutation

Ints = npt.NDArray[np.int64]

#: Steps whose rows are sorted together: of batches of eight, with lengths spread evenly from a
#: quarter to the whole, padding falls from a third to a hundredth. More would gain nothing.
WINDOW_STEPS = 64
#: Rows that are shuffled as a list, which takes 46 bytes of each while it is made.
MOST_SHUFFLED = 1 << 20
#: Rows whose places are computed at a time.
_MOST_AT_ONCE = 1 << 16


class RowOrder(Sampler[int]):
    """A sampler of every row once, in an order that differs from epoch to epoch.

    The epoch is a plain attribute that the trainer sets, since accelerate does not pass `set_epoch`
    through all its wrappers of batch samplers: with two processes it does not reach a run that is
    resumed in the middle of an epoch.

    Args:
        rows: Number of rows.
        seed: The run's seed.
        digest: The store's digest.
        lengths: (n,) lengths to group rows by; None: do not group.

    Attributes:
        epoch: Number of the epoch, from 0.
        step_rows: Number of rows of an optimizer step over all processes, the size of a group.
    """

    def __init__(self, rows: int, seed: int, digest: str, lengths: Ints | None = None) -> None:
        self.rows, self.seed, self.digest, self.epoch = rows, seed, digest, 0
        self.lengths, self.step_rows = lengths, 1

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        key = hashlib.sha256(f"{self.seed} {self.epoch} {self.digest}".encode()).digest()
        # Raw bits are the part of numpy's generators that never changes between versions.
        bits = np.random.PCG64(int.from_bytes(key))
        order = _order(key, bits, self.rows)
        parts: Iterator[Ints]
        if self.lengths is None:
            parts = map(order, _ranges(0, self.rows, _MOST_AT_ONCE))
        else:
            parts = _grouped(order, self.rows, self.lengths, self.step_rows, bits)
        for part in parts:
            yield from part.tolist()


def _order(key: bytes, bits: np.random.PCG64, rows: int) -> Callable[[Ints], Ints]:
    """Make the function that says which rows stand at the given places of the order."""
    if rows <= MOST_SHUFFLED:
        return _shuffled(bits, rows).__getitem__
    return KeyedPermutation(key, rows)


def _ranges(start: int, stop: int, size: int) -> Iterator[Ints]:
    for first in range(start, stop, size):
        yield np.arange(first, min(first + size, stop), dtype=np.int64)


def _shuffled(bits: np.random.PCG64, count: int) -> Ints:
    return np.argsort(bits.random_raw(count), kind="stable")


def _grouped(
    order: Callable[[Ints], Ints],
    rows: int,
    lengths_n: Ints,
    step_rows: int,
    bits: np.random.PCG64,
) -> Iterator[Ints]:
    """Group rows of similar length into steps, the longest first; an incomplete step stays last."""
    count = rows // step_rows
    whole = count * step_rows
    for places in _ranges(0, whole, window_of(count) * step_rows):
        steps = _longest_first(order(places), lengths_n).reshape(-1, step_rows)
        yield steps[_shuffled(bits, len(steps))].reshape(-1)
    for places in _ranges(whole, rows, step_rows):
        yield _longest_first(order(places), lengths_n)


def window_of(steps: int) -> int:
    """Choose the number of steps whose rows are sorted together, given the steps of an epoch."""
    return max(1, min(WINDOW_STEPS, steps // 4))


def _longest_first(rows: Ints, lengths_n: Ints) -> Ints:
    return rows[np.argsort(-lengths_n[rows], kind="stable")]
