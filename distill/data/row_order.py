"""The order in which a run reads its rows: a function of seed, epoch and the store's digest.

Nothing else has a say: no global generator, library version, worker or world size. So a run that
goes on from a checkpoint, on as many processes as it likes, only has to know how far it was.

Rows grouped by length waste less of a batch on padding. They are the rows of the same order: those
of 64 steps, or of a quarter of an epoch if that is less, are sorted and dealt out again, a step
each, in an order of its own. So an epoch still holds every row once, others meet in the next one,
and a step has the same rows however it is cut.

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
    """Every row once, shuffled anew in each epoch.

    The epoch is a plain attribute that the trainer sets. accelerate hands `set_epoch` through its
    wrappers of batch samplers only so deep: with two processes, not to a run that goes on in the
    middle of an epoch.

    Args:
        rows: How many there are.
        seed: Of the run.
        digest: Of the store.
        lengths: (n,) to group rows by; None: as they come.

    Attributes:
        epoch: From 0.
        step_rows: Rows of an optimizer step over all processes; what groups are made of.
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
    """Rows of like length in each step, the longest first; an incomplete step stays the last."""
    count = len(order_n) // step_rows
    whole, size = count * step_rows, window_of(count) * step_rows
    parts = [order_n[start : min(start + size, whole)] for start in range(0, whole, size)]
    found = []
    for part in parts:
        steps = _longest_first(part, lengths_n).reshape(-1, step_rows)
        found.append(steps[_shuffled(bits, len(steps))].reshape(-1))
    return np.concatenate([*found, _longest_first(order_n[whole:], lengths_n)])


def window_of(steps: int) -> int:
    """Steps whose rows are sorted together, of so many in an epoch."""
    return max(1, min(WINDOW_STEPS, steps // 4))


def _longest_first(rows: Ints, lengths_n: Ints) -> Ints:
    return rows[np.argsort(-lengths_n[rows], kind="stable")]
