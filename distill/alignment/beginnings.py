"""The tokens of a vocabulary that begin with given bytes: a range, in the order of bytes."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from distill.alignment.runs import Ints


class Beginnings:
    """A vocabulary in the order of the bytes that its tokens write.

    Args:
        written: The bytes of each id; empty for an id that writes none, which begins nothing.
        size: The number of ids, where more are in use than are given; the others write nothing.

    Attributes:
        written: As given.
        rank: (V,) int64, the place of each id in that order; -1 for those that write nothing.
        ids: The ids that write something, in that order.
    """

    def __init__(self, written: Sequence[bytes], size: int = 0) -> None:
        self.written = written
        order = sorted((i for i, each in enumerate(written) if each), key=written.__getitem__)
        self._sorted = [written[i] for i in order]
        self.ids: Ints = np.array(order, np.int64)
        self.rank: Ints = np.full(max(size, len(written)), -1, np.int64)
        self.rank[order] = np.arange(len(order))
        self._ranges: dict[tuple[int, int], tuple[int, int, int]] = {}

    def __reduce__(self) -> tuple[type["Beginnings"], tuple[Sequence[bytes], int]]:
        """Send a worker what it makes the rest of; the bytes are its tokenizer's own."""
        return Beginnings, (self.written, len(self.rank))

    def ranges(self, ids: Ints, lengths: Ints) -> tuple[Ints, Ints, Ints]:
        """Find the tokens that begin with the first bytes of other tokens.

        Args:
            ids: (n,) tokens.
            lengths: (n,) how many of their bytes are meant, at least one.

        Returns:
            (n,) first rank of those tokens, (n,) first rank of those that are longer than the
            bytes, (n,) the rank behind the last.
        """
        found = [self._range(*pair) for pair in zip(ids.tolist(), lengths.tolist(), strict=True)]
        table = np.array(found, np.int64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]

    def _range(self, token: int, length: int) -> tuple[int, int, int]:
        known = self._ranges.get((token, length))
        if known is None:
            begin = self.written[token][:length]
            first = bisect_left(self._sorted, begin)
            longer = bisect_left(self._sorted, begin + b"\0", lo=first)
            stop = bisect_left(self._sorted, _after(begin), lo=first) if _after(begin) else None
            known = (first, longer, len(self._sorted) if stop is None else stop)
            self._ranges[token, length] = known
        return known


def _after(begin: bytes) -> bytes:
    """Find the least bytes that are greater than all that begin with these; empty for none."""
    kept = begin.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b""
