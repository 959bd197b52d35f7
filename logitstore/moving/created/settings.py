"""The settings of a store that is written row by row, checked before anything is read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.plan import MOST_SHARDS_OF_ALL
from logitstore.format.spec import CODECS, Plan
from logitstore.moving.dumps.settings import ALIGNED
from logitstore.writing.plan import MOST_SHARDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Rows of a shard: a kill costs those of the shards that are not full.
_SHARD_ROWS = 256
_MAX_TOP_K = 0xFFFF


@dataclass(frozen=True, kw_only=True)
class CreateSettings:
    """The arguments of `logitstore.create` but for the place; see there."""

    tokenizer: "str | PreTrainedTokenizerBase"
    rows: int
    top_k: int
    teacher: str | None
    dataset: str | None
    vocab_size: int | None
    aligned_to: str
    max_tail: float | None
    temperatures: Sequence[float]
    logit_std: bool
    add_eos: bool
    supervise: str | None
    chat_template_path: str | None
    chat_template_kwargs: str | Mapping[str, Any] | None
    shard_rows: int | None
    codec: str
    allow_partial: bool

    def check(self) -> None:
        """Check that each setting has a value that it can have.

        Raises:
            InputError: One has a value that it cannot have.
        """
        for name, value, most in (
            ("rows", self.rows, 2**48 - 1),
            ("top_k", self.top_k, _MAX_TOP_K),
            ("vocab_size", self.vocab_size, 0xFFFF_FFFF),
            ("shard_rows", self.shard_rows, 2**48 - 1),
        ):
            if value is not None and not 1 <= value <= most:
                raise InputError(f"{name} is {value}, expected 1 to {most:,}.")
        for name, text, known in (
            ("aligned_to", self.aligned_to, ALIGNED),
            ("supervise", self.supervise or "all", ("all", "last")),
            ("codec", self.codec, CODECS),
        ):
            if text not in known:
                raise InputError(f"{name} is {text}, expected {' or '.join(known)}.")
        if self.max_tail is not None and not 0 < self.max_tail < 1:
            raise InputError(f"max_tail is {self.max_tail}, expected a probability, such as 0.01.")
        for t in self.temperatures:
            if not (0 < t < math.inf) or t == 1:
                raise InputError(
                    f"temperatures has {t}, expected positive numbers other than 1, which is "
                    "always kept."
                )

    def plan(self, dataset_sha256: str) -> Plan:
        """Cut the rows into shards of equally many."""
        least = -(-self.rows // MOST_SHARDS)
        size = self.shard_rows or max(_SHARD_ROWS, least)
        if (count := -(-self.rows // size)) > MOST_SHARDS_OF_ALL:
            raise InputError(
                f"shard_rows is {size}, which makes {counted(count, 'shard')}, and a store has "
                f"{MOST_SHARDS_OF_ALL:,} at most. Give more rows to a shard."
            )
        return Plan(dataset_sha256, np.append(np.arange(0, self.rows, size), self.rows))
