"""Give a store to torch's `DataLoader`: one dict of tensors a sequence, padded to its batch.

    loader = DataLoader(store.torch(seed=0), batch_size=8, num_workers=2)
    for batch in loader:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        # what the records at position p predict is what logits[:, p - 1] predicts

No collate function is needed: a `DataLoader` asks for whole batches (`__getitems__`), which are
read from the store together and padded to the longest there, so that its own way to stack them
works. Every process opens the store for itself, so workers may be forked or spawned.

Shape legend: B = sequences of a batch, L = tokens of its longest, K = entries of its largest record
(or the `k` that was asked for), T = extra temperatures, S = draws of its largest record.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64, Array
from logitstore.records import NO_LABEL, Example, TokenRecords

Tensors = dict[str, Tensor]

#: What stands where there is no token, or no record.
_PADDING = {
    "input_ids": 0,
    "attention_mask": 0,
    "labels": NO_LABEL,
    "entry_ids": NO_LABEL,
    "entry_logprobs": -np.inf,
    "sample_ids": NO_LABEL,
}
_OF_RECORDS = ("token_logprob", "tail_logmass", "entropy", "lognorm", "logit_std", "lognorm_std")


class Store(Protocol):
    """What is read of a store."""

    def examples(self, indices: Iterable[int]) -> list[Example]: ...
    @property
    def token_counts(self) -> I64: ...


class TorchDataset(Dataset[Tensors]):
    """The sequences of a store that have records, as dicts of tensors. Can be pickled.

    Attributes:
        sequences: The number in the store of each item, in order.
    """

    def __init__(self, store: Store, *, k: int | None = None, seed: int | None = None) -> None:
        """Choose what is read, and in which order; see `LogitStore.torch`."""
        if k is not None and k < 1:
            raise InputError(f"k is {k}, expected the number of entries to keep: 1 or more.")
        if seed is not None and seed < 0:
            raise InputError(f"seed is {seed}, expected 0 or more.")
        self._store, self._k, self._seed = store, k, seed
        self._with_records: I64 = np.flatnonzero(np.asarray(store.token_counts) > 0)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch: with a seed, another order, the same on every machine.

        A `DataLoader` with persistent workers goes on with the order that they began with.
        """
        self.sequences = self._with_records
        if self._seed is not None:
            drawn = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self.sequences = drawn.permutation(self._with_records)

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        return f"TorchDataset({self._store!r}, {len(self):,} with records)"

    def __getitem__(self, index: int) -> Tensors:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensors]:
        """Read a batch with one read of the store; each is as long as its longest."""
        numbers = [int(self.sequences[i]) for i in indices]
        examples = self._store.examples(numbers)
        if self._k is not None:
            examples = [_cut(example, self._k) for example in examples]
        return padded(numbers, examples, self._k)


def padded(
    numbers: Sequence[int], examples: Sequence[Example], k: int | None = None
) -> list[Tensors]:
    """Make the tensors of a batch, each as long as its longest.

    Args:
        numbers: Of the sequences, in the store.
        examples: The sequences.
        k: Entries of a token; None: as many as the largest record of the batch has.
    """
    arrays = [_arrays(n, e, k) for n, e in zip(numbers, examples, strict=True)]
    made: list[Tensors] = [{} for _ in arrays]
    for name in arrays[0]:
        values = [each[name] for each in arrays]
        shape = np.max([value.shape for value in values], axis=0).astype(np.int64)
        for tensors, value in zip(made, values, strict=True):
            whole = np.full(shape, _PADDING.get(name, 0), value.dtype)
            whole[tuple(slice(n) for n in value.shape)] = value
            tensors[name] = torch.from_numpy(whole)
    return made


def _cut(example: Example, k: int) -> Example:
    values = {name: getattr(example, name) for name in Example.__slots__}
    return Example(**values | {"records": example.records.cut(k)})


def _arrays(number: int, example: Example, k: int | None) -> dict[str, Array]:
    """List the arrays of one sequence, each with its tokens first."""
    records = example.records
    made: dict[str, Array] = {
        "sequence": np.asarray(number),
        "row": np.asarray(example.text.row),
        "input_ids": example.input_ids,
        "attention_mask": example.attention_mask,
        "labels": example.labels,
        "loss_mask": example.loss_mask,
    }
    for name in _OF_RECORDS:
        values = getattr(records, name)
        if values is not None:
            made[name] = example.placed(values, 0)
    entries = records.padded(k)
    made["entry_logprobs"] = example.placed(entries.logprobs, -np.inf)
    made["entry_mask"] = example.placed(entries.mask, False)
    if entries.ids is not None:
        made["entry_ids"] = example.placed(_ids(entries.ids, entries.mask), NO_LABEL)
    return made | {
        name: example.placed(a, _PADDING.get(name, 0)) for name, a in _draws(records).items()
    }


def _ids(ids: Array, mask: Array) -> I64:
    """Return ids as torch has them: an index of a padding slot is an error, on every device."""
    return np.where(mask, ids.astype(np.int64), NO_LABEL)


def _draws(records: TokenRecords) -> dict[str, Array]:
    """Return the draws as (n, S) ids and counts; a padding slot was drawn 0 times."""
    count, ids, counts = records.draw_count, records.sample_ids, records.sample_counts
    if count is None or ids is None or counts is None:
        return {}
    mask = np.arange(int(count.max(initial=0))) < count[:, None]
    both = np.full(mask.shape, NO_LABEL, np.int64), np.zeros(mask.shape, np.int64)
    both[0][mask], both[1][mask] = ids, counts
    return {"sample_ids": both[0], "sample_counts": both[1]}
