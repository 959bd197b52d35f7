"""The order in which a run reads its rows: a function of seed, epoch and the store's digest.

Nothing else has a say: no global generator, library version, worker or world size. So a run that
goes on from a checkpoint, on as many processes as it likes, only has to know how far it was.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class RowOrder(Sampler[int]):
    """Every row once, shuffled anew in each epoch.

    The epoch is a plain attribute that the trainer sets. accelerate hands `set_epoch` through its
    wrappers of batch samplers only so deep: with two processes, not to a run that goes on in the
    middle of an epoch.

    Args:
        rows: How many there are.
        seed: Of the run.
        digest: Of the store.
    """

    def __init__(self, rows: int, seed: int, digest: str) -> None:
        self.rows, self.seed, self.digest, self.epoch = rows, seed, digest, 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        key = hashlib.sha256(f"{self.seed} {self.epoch} {self.digest}".encode()).digest()
        # Raw bits are the part of numpy's generators that never changes between versions.
        bits = np.random.PCG64(int.from_bytes(key)).random_raw(self.rows)
        yield from np.argsort(bits, kind="stable").tolist()
