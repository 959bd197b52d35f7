"""How much text the rows of a dataset have: all that a capture weighs its work by.

Whoever plans a capture knows it of every row, 8 bytes each. Another process that does a part of the
work is told no more than it asks about: of a shard its rows; of a trial the rows that are tried,
and the sums of all shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from logitstore.format.numpy_types import I64
from logitstore.format.spec import Plan

#: Of these, by bytes, one has the most tokens, or nearly.
_LONGEST = 8


def _none() -> I64:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class TextSizes:
    """UTF-8 bytes of the text of rows, with the longest completion that may be written for each.

    Attributes:
        places: The rows of which it is known, by their numbers in the dataset, ascending.
        bytes: (n,) of each of these.
        of_shards: (shards,) sums of all shards of the plan.
        kept_longest: The rows with the most text of the whole dataset, where only some are known.
    """

    places: range | I64 = range(0)
    bytes: I64 = field(default_factory=_none)
    of_shards: I64 = field(default_factory=_none)
    kept_longest: I64 | None = None

    @classmethod
    def of_all(cls, text_bytes: I64, plan: Plan) -> Self:
        """Take the sizes of all rows, and add up those of every shard."""
        sums = np.add.reduceat(text_bytes, plan.boundaries[:-1])
        return cls(range(len(text_bytes)), text_bytes, sums)

    def of(self, rows: Sequence[int] | I64 | range) -> I64:
        """Return the bytes of rows.

        Raises:
            KeyError: Of one of them they are not known.
        """
        wanted = np.asarray(rows, np.int64)
        if isinstance(self.places, range):
            at = wanted - self.places.start
            is_known = (at >= 0) & (at < len(self.bytes))
        else:
            at = np.searchsorted(self.places, wanted)
            is_known = np.isin(wanted, self.places)
        if not is_known.all():
            raise KeyError(f"the text of row {wanted[~is_known][0]} is not known here")
        return self.bytes[at]

    def in_shards(self, shards: Sequence[int]) -> int:
        """Add up the bytes of shards."""
        if isinstance(shards, range) and shards == range(len(self.of_shards)):
            return int(self.of_shards.sum())
        return int(self.of_shards[np.asarray(shards, np.int64)].sum())

    @property
    def of_largest_shard(self) -> int:
        return int(self.of_shards.max())

    @cached_property
    def longest(self) -> I64:
        """The few rows with the most text, most first; of as many the first ones."""
        if self.kept_longest is not None:
            return self.kept_longest
        count = min(_LONGEST, len(self.bytes))
        least = np.partition(self.bytes, len(self.bytes) - count)[len(self.bytes) - count]
        enough = np.flatnonzero(self.bytes >= least)
        return enough[np.argsort(-self.bytes[enough], kind="stable")[:count]]

    def for_trial(self, rows: I64, longest: I64) -> Self:
        """Keep what a trial asks about: some rows, and which are the longest."""
        return replace(self, places=rows, bytes=self.of(rows), kept_longest=longest)
