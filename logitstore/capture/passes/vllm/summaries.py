"""Summarise a teacher's distributions inside vLLM's worker, from the hidden states of a step.

A step of vLLM reads parts of several prompts: a whole one, or a chunk of it. For each, the rows of
hidden states that predict supervised tokens are picked and go through vLLM's own output head, a
chunk of rows at a time, so whatever the model does to its logits is done. With a head that is
sharded by vocabulary every worker of a group computes its part of each chunk, and vLLM gathers
them; one of them summarises.

Shape legend: D = hidden width, V = vocabulary, n = tokens with a record.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.teacher.draws import TAIL_DRAWS, random_words
from logitstore.capture.teacher.head import CHUNK_ROWS, summarise_chunks
from logitstore.capture.teacher.summary import HeadResult, HeadSettings
from logitstore.format.numpy_types import I64

#: Under this name a request carries what is asked of it (`SamplingParams.extra_args`).
KEY = "logitstore"
_PLACE = "<i4"

LogitsOf = Callable[[Tensor], Tensor | None]


class Asked(NamedTuple):
    """What is asked of a prompt.

    Attributes:
        n: Its place in the batch.
        row, part: Of the dataset; they decide its draws.
        places: Positions of the tokens that have a record.
        targets: These tokens.
    """

    n: int
    row: int
    part: int
    places: I64
    targets: I64

    def packed(self) -> dict[str, Any]:
        """Return it as `extra_args` of a request."""
        places, targets = (a.astype(_PLACE).tobytes() for a in (self.places, self.targets))
        return {KEY: [self.n, self.row, self.part, places, targets]}

    @classmethod
    def of(cls, sampling_params: Any) -> "Asked | None":
        """Read it out of a request's `SamplingParams`; None where nothing is asked."""
        found = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
        if found is None:
            return None
        n, row, part, *arrays = found
        return cls(n, row, part, *(np.frombuffer(a, _PLACE).astype(np.int64) for a in arrays))


class Span(NamedTuple):
    """The part of a prompt that a step reads.

    Attributes:
        asked: What is asked of the prompt.
        first: Position of its first token here.
        length: How many are read.
        offset: Row of the step's hidden states where it begins.
    """

    asked: Asked
    first: int
    length: int
    offset: int


class Summaries:
    """Collects summaries of a batch, step by step.

    Args:
        settings: What to keep.
        is_first: Whether this worker summarises; others of its group only take part in the head.
    """

    def __init__(self, settings: HeadSettings, is_first: bool = True) -> None:
        self._settings, self._is_first = settings, is_first
        self._results: list[HeadResult] = []
        self._at: list[tuple[I64, I64]] = []

    def add(self, logits_of: LogitsOf, hidden_MD: Tensor, spans: Sequence[Span]) -> None:
        """Summarise what a step has read.

        Args:
            logits_of: Computes logits of hidden states, (m, D) to (m, V); every worker of a group
                must call it with the same rows. None where another has them.
            hidden_MD: Hidden states of the step's tokens.
            spans: The parts of prompts among them.
        """
        picked = [_picked(span) for span in spans]
        rows = np.concatenate([np.zeros(0, np.int64), *(p.rows for p in picked)])
        if not len(rows):
            return
        hidden_nD = hidden_MD[torch.from_numpy(rows).to(hidden_MD.device)]

        def rows_of(part: slice) -> Tensor:
            logits = logits_of(hidden_nD[part])
            assert logits is not None, "the first worker of a group has the logits"
            return logits

        if not self._is_first:
            for start in range(0, len(rows), CHUNK_ROWS):
                logits_of(hidden_nD[start : start + CHUNK_ROWS])
            return
        places_n3 = torch.from_numpy(np.concatenate([p.places for p in picked]))
        targets_n = torch.from_numpy(np.concatenate([p.targets for p in picked]))
        words_nW = self._words(places_n3.to(hidden_MD.device))
        device = hidden_MD.device
        self._results += summarise_chunks(rows_of, targets_n.to(device), self._settings, words_nW)
        n = np.concatenate([np.full(len(p.rows), p.n) for p in picked])
        self._at.append((n, places_n3[:, 2].numpy()))

    def packed(self) -> bytes | None:
        """Return all of it as bytes, and forget it; None if there is none."""
        if not self._results:
            return None
        result = HeadResult.on_host(self._results)
        n, place = (np.concatenate(column) for column in zip(*self._at, strict=True))
        self._results, self._at = [], []
        return packed({"n": n, "place": place}, result)

    def _words(self, places_n3: Tensor) -> Tensor | None:
        draws, seed = self._settings.draws, self._settings.seed
        return random_words(places_n3, 2 * draws, seed, TAIL_DRAWS) if draws else None


class _Picked(NamedTuple):
    """The rows of hidden states that predict tokens of a prompt, and these tokens."""

    n: int
    rows: I64
    places: I64  # (n, 3): row, part and position
    targets: I64


def _picked(span: Span) -> _Picked:
    """Pick what is asked of a span: the record of a token is made of the row before it."""
    asked = span.asked
    predicted_at = asked.places - 1
    is_here = (predicted_at >= span.first) & (predicted_at < span.first + span.length)
    place = asked.places[is_here]
    row, part = (np.full_like(place, value) for value in (asked.row, asked.part))
    rows = span.offset + predicted_at[is_here] - span.first
    return _Picked(asked.n, rows, np.stack([row, part, place], 1), asked.targets[is_here])


def packed(arrays: Mapping[str, Any], result: HeadResult) -> bytes:
    """Write arrays and a result as one string of bytes, which goes from process to process."""
    held = {f.name: getattr(result, f.name) for f in fields(result)}
    named = {name: t.numpy() for name, t in held.items() if t is not None}
    written = io.BytesIO()
    np.savez(written, **arrays, **named)
    return written.getvalue()


def unpacked(data: bytes) -> tuple[dict[str, I64], HeadResult]:
    """Read what `packed` wrote: the arrays, and the result."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        arrays = dict(found)
    names = {f.name for f in fields(HeadResult)}
    result = {name: torch.from_numpy(a) for name, a in arrays.items() if name in names}
    return {n: a for n, a in arrays.items() if n not in names}, HeadResult(**result)
