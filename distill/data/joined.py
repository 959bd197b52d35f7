"""Several stores as one dataset: each text once, with the records of every teacher that read it.

Each store is read, aligned and mapped as if it were alone (:class:`StoreDataset`); the examples of
one text are then laid together. The arrays of a loss are there once for each store, see
:mod:`distill.losses.uses`, and `share` says what each store counts for in this text:

    mean   the weights of the stores that have it, made to sum to one
    best   all for the one store whose teacher is least surprised by the text, nats a byte

Shape legend: S = stores, E = examples.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from distill.alignment.runs import Ints
from distill.data.batch_cuts import covered_by
from distill.data.dataset import StoreDataset
from distill.data.example import Example
from distill.data.joining import join, shares
from distill.data.ragged import rectangles, tensors_of
from distill.data.selection import Floats
from distill.head.query import Partition
from distill.losses import find
from distill.losses.aligned import nothing
from distill.losses.uses import loss_of, use
from distill.student.text import StudentReader
from logitstore.console.counts import counted
from logitstore.errors import InputError, MismatchError

#: Examples that are read before training to see whether stores are read alike.
_TRIED = 16


class JoinedDataset(Dataset[Example]):
    """The texts of several stores, as examples for one student.

    Args:
        parts: Each store as the student reads it.
        weights: Of each store; only their ratios count.
        surprise: For `best`: of each store (R,) the surprise of its rows, nats a byte.
        of_first: Whether texts that the first store does not have are left out.
        slots: The number of each store among those of the run, for a held-out part that has not all
            of them; None: there are these.
        stores: How many stores the run has.

    Raises:
        MismatchError: A store has no text in common with any other.
        InputError: A loss cannot be computed for several teachers at once.
    """

    def __init__(
        self,
        parts: Sequence[StoreDataset],
        weights: Sequence[float],
        *,
        surprise: Sequence[Floats] | None = None,
        of_first: bool = False,
        slots: Sequence[int] | None = None,
        stores: int | None = None,
    ) -> None:
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.slots = tuple(range(len(parts)) if slots is None else slots)
        self.stores = len(parts) if stores is None else stores
        first = parts[0]
        self.losses, self.options, self.store = first.losses, first.options, first.store
        self._check_tops()
        joined = join(parts, of_first=of_first)
        self._cut_otherwise = joined.cut_otherwise
        self._has_ES = joined.table_ES >= 0
        self.table_ES = joined.table_ES
        if len(parts) > 1:
            self._check_common()
        if surprise is not None:
            self.table_ES = _of_least_surprise(self.parts, self.table_ES, surprise)
        self.share_ES = shares(self.table_ES, weights)

    @property
    def uses(self) -> tuple[str, ...]:
        """The names of the arrays of each loss, for each store of the run, loss by loss."""
        return tuple(use(loss, store) for loss in self.losses for store in range(self.stores))

    @property
    def reader(self) -> StudentReader:
        """What the student reads the first store with."""
        return self.parts[0].reader

    @cached_property
    def records(self) -> Ints:
        """(E,) records of each text, of the first store that has it: a guess at its length."""
        first_E = (self.table_ES >= 0).argmax(1)
        found = np.zeros(len(self), np.int64)
        for number, part in enumerate(self.parts):
            is_its_E = first_E == number
            found[is_its_E] = part.records[self.table_ES[is_its_E, number]]
        return found

    @property
    def without_records(self) -> int:
        """Sequences of all stores that have no records."""
        return sum(part.without_records for part in self.parts)

    @property
    def rows(self) -> Ints | None:
        """The rows of the first store that were chosen; None: all."""
        return self.parts[0].rows

    @property
    def rows_digest(self) -> str | None:
        """What the chosen rows are, in a few letters; None for all."""
        return self.parts[0].rows_digest

    @property
    def is_one_tokenizer(self) -> bool:
        """Whether all teachers and the student have one tokenizer."""
        return all(part.is_one_tokenizer for part in self.parts)

    @cached_property
    def partitions(self) -> Mapping[str, Partition]:
        """What the ids of a loss are events of; one object for all uses that have the same."""
        distinct, made = list[Partition](), dict[str, Partition]()
        for part, slot in zip(self.parts, self.slots, strict=True):
            for loss, partition in part.partitions.items():
                known = next((each for each in distinct if _is_same(each, partition)), None)
                if known is None:
                    distinct.append(partition)
                made[use(loss, slot)] = known or partition
        return made

    def __len__(self) -> int:
        return len(self.table_ES)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Make the examples of a batch with one read of each store; DataLoader calls this."""
        chosen_ES = self.table_ES[np.asarray(indices, np.int64)]
        found: list[dict[int, Example]] = [{} for _ in indices]
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(chosen_ES[:, number] >= 0)
            examples = part.__getitems__(chosen_ES[places, number].tolist()) if len(places) else []
            for place, example in zip(places.tolist(), examples, strict=True):
                found[place][number] = example
        return [self._together(of_text, i) for of_text, i in zip(found, indices, strict=True)]

    def _together(self, of_stores: Mapping[int, Example], index: int) -> Example:
        """Lay the examples of one text together; a store in which it is read otherwise is left."""
        read = {number: each for number, each in of_stores.items() if not each.skipped}
        first = next(iter((read or of_stores).values()))
        alike = {number: each for number, each in read.items() if _is_read_alike(each, first)}
        share_S = np.zeros(self.stores, np.float32)
        for number in alike:
            share_S[self.slots[number]] = self.share_ES[index, number]
        if 0 < len(alike) < len(of_stores):
            share_S /= share_S.sum()
        teacher = {
            use(loss, self.slots[number]): arrays
            for number, each in alike.items()
            for loss, arrays in each.teacher.items()
        }
        covered = np.zeros(int(first.is_label.sum()), np.bool_)
        for arrays in teacher.values():
            covered |= covered_by(arrays, len(covered))
        return first._replace(
            teacher=teacher,
            aligned=int(covered.sum()),
            share=share_S,
            read_otherwise=len(read) - len(alike),
        )

    def facts(self) -> list[dict[str, Any]]:
        """Say of each store how much of it is used, as JSON."""
        alone_E = self._has_ES.sum(1) == 1
        return [
            {
                "sequences": int(self._has_ES[:, number].sum()),
                "sequences_alone": int((self._has_ES[:, number] & alone_E).sum()),
                "sequences_learnt": int((self.table_ES[:, number] >= 0).sum()),
                "rows_cut_otherwise": int(self._cut_otherwise[number]),
            }
            for number in range(len(self.parts))
        ]

    def check_read_alike(self) -> None:
        """Reject a store whose texts the student reads otherwise than those of the others.

        Raises:
            MismatchError: Names it.
        """
        several = np.flatnonzero((self.table_ES >= 0).sum(1) > 1)
        for number, part in enumerate(self.parts[1:], 1):
            shared = several[self.table_ES[several, number] >= 0]
            if not len(shared):
                continue
            tried = shared[np.unique(np.linspace(0, len(shared) - 1, _TRIED).astype(int))]
            both = [each for each in self.__getitems__(tried.tolist()) if each.read_otherwise]
            if len(both) == len(tried):
                raise MismatchError(
                    f"{part.store.path}: the student reads the same texts otherwise than in "
                    f"{self.store.path} (other tokens, or others of them supervised), so what "
                    "the teachers say of them cannot be laid together. Capture both with the same "
                    "--supervised-text and the same ends, or train from one."
                )

    def _check_common(self) -> None:
        """Reject a store without a text in common with another."""
        is_common_E = self._has_ES.sum(1) > 1
        for number, part in enumerate(self.parts):
            if not (self._has_ES[:, number] & is_common_E).any():
                others = ", ".join(str(p.store.path) for p in self.parts if p is not part)
                raise MismatchError(
                    f"{part.store.path}: none of its {counted(len(part), 'sequence')} has a text "
                    f"that is also in {others}, so the teachers have nothing in common to teach. "
                    "Capture the same dataset with each teacher, or train from one after another.",
                    kind="no-common-row",
                )

    def _check_tops(self) -> None:
        """Reject a loss that reads the student's largest probabilities of other tokens a store."""
        for loss in self.losses:
            found = find(loss)
            asked = rectangles(tensors_of(found.arrays(nothing(), self.options)))
            made = {id(each) for name, each in self.partitions.items() if loss_of(name) == loss}
            has_all = len(made) == 1 and all(loss in part.partitions for part in self.parts)
            if found.ask(asked, self.options).has_top_of_first_event and made and not has_all:
                raise InputError(
                    f"--loss {loss}: reads the student's most probable tokens among those that the "
                    "teacher has no twin of, and these are others for each of these stores' "
                    "tokenizers. Use stores of teachers with one tokenizer, or --loss mapped_kl.",
                    kind="one-teacher",
                )


#: A store as the student reads it, or several.
StudentData = StoreDataset | JoinedDataset


def parts_of(data: StudentData) -> tuple[StoreDataset, ...]:
    """List the stores of a dataset, each as the student reads it."""
    return data.parts if isinstance(data, JoinedDataset) else (data,)


def stores_of(data: StudentData) -> int:
    """Count the stores of the run."""
    return data.stores if isinstance(data, JoinedDataset) else 1


def uses_of(data: StudentData) -> tuple[str, ...]:
    """List the names of the arrays of each loss."""
    return data.uses if isinstance(data, JoinedDataset) else data.losses


def _of_least_surprise(
    parts: Sequence[StoreDataset], table_ES: Ints, surprise: Sequence[Floats]
) -> Ints:
    """Keep of each example the store whose teacher is least surprised by its row."""
    cost_ES = np.full(table_ES.shape, np.inf)
    for number, (part, surprise_R) in enumerate(zip(parts, surprise, strict=True)):
        has_E = table_ES[:, number] >= 0
        rows_n = part.sequences.of(np.asarray(part.store.sequence_rows))
        rows = rows_n[table_ES[has_E, number]]
        # A row without bytes has none; any other is chosen before it.
        cost_ES[has_E, number] = np.nan_to_num(surprise_R[rows], nan=np.finfo(np.float64).max)
    is_best_ES = np.arange(table_ES.shape[1]) == cost_ES.argmin(1)[:, None]
    return np.where(is_best_ES, table_ES, -1)


def _is_read_alike(one: Example, other: Example) -> bool:
    return np.array_equal(one.token_ids, other.token_ids) and np.array_equal(
        one.is_label, other.is_label
    )


def _is_same(one: Partition, other: Partition) -> bool:
    if one.count != other.count or not one.of_V.equal(other.of_V):
        return False
    if one.share_rV is None or other.share_rV is None:
        return one.share_rV is other.share_rV
    return one.share_rV.equal(other.share_rV)
