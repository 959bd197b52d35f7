"""The order in which a run reads its rows: a function of seed, epoch and the store's digest.

It depends on nothing else: no global generator, library version, worker or world size. So a run
that is resumed from a checkpoint, on any number of processes, needs to know only how far it was.

Grouping rows by length leaves less padding in a batch. The rows of 64 steps of that order (or of a
quarter of an epoch if that is less) are sorted by length and cut into steps, and these steps are
shuffled. So an epoch still has every row once, other rows share a step in the next epoch, and a
step has the same rows on any number of processes.

Shape legend: n = rows, s = rows of a step.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

Ints = npt.NDArray[np.int64]

#: Steps whose rows are sorted together: of batches of eight, with lengths spread evenly from a
#: quarter to the whole, padding falls from a third to a hundredth. More would gain nothing.
WINDOW_STEPS = 64


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
        order_n = _shuffled(bits, self.rows)
        if self.lengths is not None:
            order_n = _grouped(order_n, self.lengths, self.step_rows, bits)
        yield from order_n.tolist()


def _shuffled(bits: np.random.PCG64, count: int) -> Ints:
    return np.argsort(bits.random_raw(count), kind="stable")


def _grouped(order_n: Ints, lengths_n: Ints, step_rows: int, bits: np.random.PCG64) -> Ints:
    """Group rows of similar length into steps, the longest first; an incomplete step stays last."""
    count = len(order_n) // step_rows
    whole, size = count * step_rows, window_of(count) * step_rows
    parts = [order_n[start : min(start + size, whole)] for start in range(0, whole, size)]
    grouped = []
    for part in parts:
        steps = _longest_first(part, lengths_n).reshape(-1, step_rows)
        grouped.append(steps[_shuffled(bits, len(steps))].reshape(-1))
    return np.concatenate([*grouped, _longest_first(order_n[whole:], lengths_n)])


def window_of(steps: int) -> int:
    """Choose the number of steps whose rows are sorted together, given the steps of an epoch."""
    return max(1, min(WINDOW_STEPS, steps // 4))


def _longest_first(rows: Ints, lengths_n: Ints) -> Ints:
    return rows[np.argsort(-lengths_n[rows], kind="stable")]
