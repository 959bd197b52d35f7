"""Notice what only many rows can tell: arrays that are of other tokens, renormalised entries."""

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64, Array
from logitstore.moving.created.texts import Tokens
from logitstore.moving.dumps.first_pass import BETTER_BY, LEAST_LOOKED_AT, RENORMALISED_SHARE
from logitstore.writing.lists.lists import Lists, look_renormalised


class Fits:
    """Counts of all rows so far, in this process.

    Attributes:
        hits: Records whose entries hold their token, the token after it, and the one before it.
        looked_at: Records that have all three.
        suspects: Records whose entries add up to one although they should not.
        telling: Records that can tell.
    """

    def __init__(self) -> None:
        self.hits, self.looked_at = np.zeros(3, np.int64), 0
        self.suspects = self.telling = 0

    def count(self, ids_nK: Array | None, count_n: Array, tokens: Tokens) -> None:
        """Count a row of records with (n, K) entries."""
        assert ids_nK is not None
        inner = (tokens.places > 0) & (tokens.places < len(tokens.ids) - 1)
        places = tokens.places[inner]
        is_entry = np.arange(ids_nK.shape[1]) < count_n[inner, None]
        for i, move in enumerate((0, 1, -1)):
            held = (ids_nK[inner] == tokens.ids[places + move][:, None]) & is_entry
            self.hits[i] += int(held.any(1).sum())
        self.looked_at += int(inner.sum())

    def count_lists(self, lists: Lists, tokens: Tokens, vocab_size: int) -> None:
        """Count a row of records with flat entries."""
        width = int(lists.counts.max(initial=0))
        mask = np.arange(width) < lists.counts[:, None]
        ids_nK: I64 = np.zeros(mask.shape, np.int64)
        ids_nK[mask] = lists.ids
        self.count(ids_nK, lists.counts, tokens)
        suspects, telling = look_renormalised(lists, vocab_size)
        self.suspects, self.telling = self.suspects + suspects, self.telling + telling

    def check(self, where: str, *, moves_on: bool) -> None:
        """Check the counts, before anything is committed that they are of.

        Raises:
            InputError: The arrays are of the tokens beside theirs, or were renormalised.
        """
        own, late, early = (int(n) / max(self.looked_at, 1) for n in self.hits)
        chance = 1 / max(self.looked_at, 1) ** 0.5  # a shard may be small
        if self.looked_at >= LEAST_LOOKED_AT and max(late, early) > own + BETTER_BY + chance:
            neighbour, share = ("after", late) if late > early else ("before", early)
            step = "Give each row at its token, or the token before it"
            if (neighbour == "before") == moves_on:
                step = f"Give aligned_to={'token' if moves_on else 'next'!r}"
            raise InputError(
                f"{where}: {share:.0%} of the distributions hold the token {neighbour} the one "
                f"they would be of, {own:.0%} their own: they are shifted. {step}."
            )
        if self.telling and self.suspects >= RENORMALISED_SHARE * self.telling:
            raise InputError(
                f"{where}: its entries add up to one ({self.suspects:,} of the {self.telling:,} "
                "that would show otherwise), so they were renormalised, and their tails are lost. "
                "Give log-probabilities over the full vocabulary."
            )
