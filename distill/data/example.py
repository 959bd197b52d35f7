"""The example, one sequence ready for training, and the interface of a store to the dataset."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from distill.data.targets import (
    Arrays,
    Ints,
)
from logitstore.records import SequenceText, TokenRecords
from logitstore.storage.paths import StorePath


class Store(Protocol):
    """A store as training reads it: the part of :class:`logitstore.LogitStore` that it needs."""

    def __len__(self) -> int: ...
    def read_many(self, indices: Iterable[int]) -> list[TokenRecords]: ...
    def read_around(self, indices: Iterable[int]) -> list[TokenRecords]: ...
    def text(self, i: int) -> SequenceText: ...
    @property
    def token_counts(self) -> Ints: ...
    @property
    def sequence_rows(self) -> Ints: ...
    @property
    def statuses(self) -> dict[str, int]: ...
    def first_rows(self) -> dict[str, int]: ...
    @property
    def spec(self) -> Any: ...
    @property
    def plan(self) -> Any: ...
    @property
    def provenance(self) -> Any: ...
    @property
    def fidelity(self) -> Any: ...
    @property
    def digest(self) -> str: ...
    @property
    def path(self) -> StorePath: ...
    @property
    def tokenizer_path(self) -> Path: ...
    def lm_head(self) -> Any: ...
    def boundaries_of(self, fingerprint: str, name: str, /) -> "Store": ...


class Example(NamedTuple):
    """A sequence, tokenised by the student, with the teacher's arrays of each loss."""

    token_ids: npt.NDArray[np.int32]  # (t,)
    is_label: npt.NDArray[np.bool_]  # (t,), never at t = 0
    teacher: dict[str, Arrays]
    aligned: int  # labels that a teacher pair covers
    skipped: bool  # this student cannot use the row
    text_changed: bool = False  # the reason: its chat template changes supervised text
    row: int = -1  # number of the dataset's row
    share: npt.NDArray[np.float32] | None = None  # (S,) what each of several stores counts for
    read_otherwise: int = 0  # stores whose text of this row the student reads otherwise
    beside: "Example | None" = None  # the second text of the row, learnt in the same batch


def flat(examples: Sequence[Example]) -> list[Example]:
    """List the sequences of a batch: each example, and its second text right behind it."""
    return [each for e in examples for each in (e, e.beside) if each is not None]
