"""Engines that say lists: the most probable tokens at each place, and the token's own number.

A server does, and so does a serving engine in this process. The tail is what a list leaves to one;
entropy is not known. What such an engine says is checked as an import is.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.passes.encoding import Encoding
from logitstore.capture.passes.engine import Alone, Forwarded
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.summary import HeadResult
from logitstore.errors import InputError
from logitstore.format.numpy_types import F64, I64
from logitstore.writing.lists import lists as of_lists
from logitstore.writing.lists.lists import Lists, check_largest, checked, without_extras

log = logging.getLogger(__name__)


class Said(NamedTuple):
    """What an engine says of a sequence of tokens.

    Attributes:
        lists: (T,) one list for each token; none for the first.
        own: (T,) log-probabilities of the tokens themselves; NaN where only a list may have it.
        ranks: (T,) their ranks in the vocabulary, from 1; NaN where not known.
    """

    lists: Lists
    own: F64
    ranks: F64


class Refused(Exception):
    """An engine's refusal of one sequence, in its own words."""


class ListedEngine(Encoding):
    """The part of such engines that is the same for all.

    Attributes:
        step: What to do where it gives fewer than k entries, up to the words "with --top-k".
    """

    step = "Capture"

    def ask(self, batch: Sequence[TeacherSequence]) -> list[Said | Refused]:
        """Ask about every sequence of a batch at once.

        Raises:
            InputError: The engine cannot be reached, or answers something else.
        """
        raise NotImplementedError

    def forward(self, batch: Sequence[TeacherSequence]) -> Forwarded:
        """Ask about a batch, and check what is said.

        Raises:
            InputError: As `ask`, or what is said cannot be.
        """
        return self._read(batch, self.spec.max_tail)

    def _read(self, batch: Sequence[TeacherSequence], max_tail: float | None) -> Forwarded:
        answers = self.ask(batch)
        refused = {n: str(a) for n, a in enumerate(answers) if isinstance(a, Refused)}
        warn_of_refused(self.place, batch, refused)
        parts, sequence_n = [], []
        for n, (sequence, answer) in enumerate(zip(batch, answers, strict=True)):
            if isinstance(answer, Refused):
                continue
            parts.append(self._records(sequence, answer, max_tail))
            sequence_n.append(torch.full((sequence.records,), n))
        places = torch.cat(sequence_n) if sequence_n else torch.zeros(0, dtype=torch.long)
        width = min(self.spec.top_k, self.spec.vocab_size)
        return Forwarded(_joined(parts, width), places, refused=refused)

    def most_probable(self, batch: Sequence[TeacherSequence], count: int) -> HeadResult:
        """Find the most probable tokens: no more than the spec keeps, which the engine gives."""
        return self._read(batch, None).result

    def alone(self, sequence: TeacherSequence) -> Alone:
        """Ask about one sequence while the engine has nothing else of ours to read."""
        return Alone(self.forward([sequence]).result.token_logprob)

    def check_probe(self, said: Said) -> None:
        """Check what is said of a few tokens, before anything is written.

        Raises:
            InputError: It gives less than is to be kept, or what cannot be.
        """
        lists = checked(said.lists, self.spec.vocab_size, self.place)[0]
        self._check_held(lists.take(np.arange(1, len(lists))), np.zeros(0), self.place)

    def _records(
        self, sequence: TeacherSequence, said: Said, max_tail: float | None
    ) -> dict[str, Any]:
        """Check what the engine says of the supervised tokens of a sequence, and cut it to k."""
        where = f"{self.place}: row {sequence.line.row:,}"
        places = np.flatnonzero(sequence.text.has_record)
        ids = sequence.text.token_ids
        if np.isnan(said.lists.logprobs).any():
            return _not_finite(len(places))
        lists = checked(said.lists, self.spec.vocab_size, where)[0]
        own = np.where(np.isnan(said.own), lists.logprob_of(ids), said.own)[places]
        lists = without_extras(lists, ids, said.ranks, self.spec.vocab_size).take(places)
        self._check_held(lists, own, where)
        lists = of_lists.first(lists, self.spec.top_k)
        check_largest(lists, self.spec.vocab_size, where)
        if max_tail is not None:
            lists = of_lists.fewest(lists, max_tail)
        lists = of_lists.at_most_one(lists)
        return {
            "lists": lists,
            "token_logprob": np.minimum(own, 0.0),
            "tail_logmass": of_lists.tails(lists, self.spec.vocab_size),
        }

    def _check_held(self, lists: Lists, own: F64, where: str) -> None:
        least = int(lists.counts.min(initial=self.spec.top_k))
        if least < min(self.spec.top_k, self.spec.vocab_size):
            raise InputError(
                f"{where}: it gives {least} entries of a token, and --top-k is {self.spec.top_k}. "
                f"{self.step.format(k=self.spec.top_k)} with --top-k {max(least, 1)} into another "
                "--out.",
                kind="engine",
            )
        if np.isnan(own).any():
            raise InputError(
                f"{where}: it does not say how probable token "
                f"{int(np.flatnonzero(np.isnan(own))[0]):,} itself is. Use vLLM's or SGLang's.",
                kind="engine",
            )


def _not_finite(count: int) -> dict[str, Any]:
    """Return records that are no numbers: what becomes of them is the user's choice."""
    unknown = np.full(count, np.nan)
    return {"lists": Lists.none(count), "token_logprob": unknown, "tail_logmass": unknown}


def warn_of_refused(
    place: str, batch: Sequence[TeacherSequence], refused: Mapping[int, str]
) -> None:
    """Name the rows of a batch that an engine refuses, with its words."""
    for n, why in refused.items():
        log.warning("%s: row %s is refused: %s.", place, f"{batch[n].line.row:,}", why)


def _joined(parts: Sequence[dict[str, Any]], width: int) -> HeadResult:
    """Put the records of some sequences together, as a teacher pass computes them: (n, width)."""
    whole = Lists.joined([part["lists"] for part in parts])
    logprobs, ids = of_lists.padded(whole, width)

    def of(name: str) -> Tensor:
        numbers = [np.zeros(0), *(part[name] for part in parts)]
        return torch.from_numpy(np.concatenate(numbers).astype(np.float32))

    return HeadResult(
        token_logprob=of("token_logprob"),
        entry_logprobs=torch.from_numpy(logprobs),
        entry_ids=torch.from_numpy(ids.astype(np.int32)),
        entry_count=torch.from_numpy(_int64(whole.counts)),
        tail_logmass=of("tail_logmass"),
        entropy=torch.zeros(len(whole)),  # not known: the spec says so
    )


def _int64(values: I64) -> I64:
    return np.ascontiguousarray(values, np.int64)
