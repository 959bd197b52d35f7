"""A store as the teacher would have written it with the trimmed tokenizer.

The student of the control has the teacher's own tokenizer, trimmed. It cuts the store's text as the
whole one does, so each record is for one of its labels; only ids differ. Here they are replaced,
and the mass of tokens that were trimmed away goes to the tail. So `tail_kl` compares the two
distributions exactly, and covers every label.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from distill.data.example import Store
from logitstore.records import TokenRecords
from logitstore.text.tokenizer import ByteTokenizer


class RenumberedStore:
    """A view of a store with the ids of a trimmed tokenizer; all else is the store's.

    Args:
        store: Of the whole tokenizer.
        whole: The whole tokenizer.
        trimmed: The trimmed one.
    """

    def __init__(
        self, store: Store, whole: PreTrainedTokenizerBase, trimmed: PreTrainedTokenizerBase
    ) -> None:
        self._store = store
        size = int(store.spec.vocab_size)
        self._new: npt.NDArray[np.int64] = np.full(size, -1, np.int64)
        old = whole.get_vocab()
        for token, i in trimmed.get_vocab().items():
            self._new[old[token]] = i
        reader = ByteTokenizer(trimmed)
        ends = [int(self._new[i]) for i in store.spec.eos_ids if self._new[i] >= 0]
        made = {"fingerprint": reader.fingerprint, "size": reader.size, "eos_ids": ends}
        self.spec = replace(
            store.spec,
            teacher={**store.spec.teacher, "vocab_size": reader.size},
            tokenizer={**store.spec.tokenizer, **made},
        )

    def __len__(self) -> int:
        return len(self._store)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read_many(self, indices: Iterable[int]) -> list[TokenRecords]:
        """Read records as the store does, with the new ids."""
        return [self._renumbered(records) for records in self._store.read_many(indices)]

    def _renumbered(self, records: TokenRecords) -> TokenRecords:
        assert records.entry_ids is not None
        token_ids, entry_ids = self._new[records.token_ids], self._new[records.entry_ids]
        assert (token_ids >= 0).all(), "the text uses a token that was trimmed away"
        owner = np.repeat(np.arange(len(records)), records.entry_count)
        is_kept = entry_ids >= 0
        mass = np.exp(records.entry_logprobs, dtype=np.float64)
        lost = np.bincount(owner[~is_kept], mass[~is_kept], len(records))
        with np.errstate(divide="ignore"):
            tail = np.log(np.exp(records.tail_logmass, dtype=np.float64) + lost)
        return replace(
            records,
            token_ids=token_ids.astype(np.uint32),
            entry_count=np.bincount(owner[is_kept], minlength=len(records)),
            entry_ids=entry_ids[is_kept].astype(np.uint32),
            entry_logprobs=records.entry_logprobs[is_kept],
            tail_logmass=tail.astype(np.float32),
        )
