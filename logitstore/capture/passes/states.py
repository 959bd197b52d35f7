"""Choose which hidden states of a sequence are kept, and give each sequence of a batch its own.

The state of a token is what the teacher says behind it, so it predicts the next one: the state of a
record's token is that of the token before it. Without context these alone are kept, in the order of
records; with context all of them are, and each record says which one is its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.hidden import CaughtStates
from logitstore.format.encoded import EncodedRecords
from logitstore.format.hidden import EncodedStates, HiddenSpec
from logitstore.format.numpy_types import I64
from logitstore.format.spec import StoreSpec


def kept_of(sequence: TeacherSequence, spec: StoreSpec) -> Tensor:
    """List (T,) the places of a sequence whose states are kept."""
    return torch.from_numpy(_kept(sequence, _hidden(spec)))


def _hidden(spec: StoreSpec) -> HiddenSpec:
    assert spec.hidden is not None
    return spec.hidden


def _kept(sequence: TeacherSequence, hidden: HiddenSpec) -> I64:
    if hidden.context:
        return np.arange(sequence.length, dtype=np.int64)
    return np.flatnonzero(sequence.text.has_record) - 1


def _spans(batch: Sequence[TeacherSequence], hidden: HiddenSpec) -> Iterator[tuple[int, int]]:
    """Find where the states of each sequence lie among those of the batch."""
    counts = [len(_kept(s, hidden)) for s in batch]
    return pairwise([0, *np.cumsum(counts, dtype=np.int64).tolist()])


def not_finite(
    batch: Sequence[TeacherSequence], states: CaughtStates, spec: StoreSpec
) -> list[int]:
    """Find the sequences of which a state has a number that is not finite."""
    spans = _spans(batch, _hidden(spec))
    finite = states.last.is_finite
    return [i for i, (start, stop) in enumerate(spans) if not bool(finite[start:stop].all())]


def with_states(
    records: Iterable[EncodedRecords | None],
    batch: Sequence[TeacherSequence],
    states: CaughtStates,
    spec: StoreSpec,
) -> list[EncodedRecords | None]:
    """Give the records of each sequence their hidden states.

    Args:
        records: Of each sequence; None for one that is skipped.
        batch: The sequences.
        states: Those of the batch.
        spec: The store's.
    """
    hidden = _hidden(spec)
    each = zip(records, batch, _spans(batch, hidden), strict=True)
    return [
        None if own is None else replace(own, hidden=_states(sequence, span, states, hidden))
        for own, sequence, span in each
    ]


def _states(
    sequence: TeacherSequence, span: tuple[int, int], states: CaughtStates, hidden: HiddenSpec
) -> EncodedStates:
    ids = sequence.text.token_ids
    places = None
    if hidden.context:
        places = (np.flatnonzero(sequence.text.has_record) - 1).astype(np.uint32)
    read = ids[_kept(sequence, hidden)].astype(np.uint32)
    last = states.last.rows(*span)
    if states.embedding_ids is None or states.embedding is None:
        return EncodedStates(read, last, places)
    wanted = np.unique(np.concatenate([read, ids[sequence.text.has_record].astype(np.uint32)]))
    at = np.searchsorted(states.embedding_ids.numpy(), wanted)
    rows = states.embedding.rows(0, len(states.embedding_ids))[at]
    return EncodedStates(read, last, places, wanted, rows)
