"""A map of the teacher's tokens to events of the student's vocabulary.

Two tokenizers cut one text in different places, so a token of the teacher is not always a token of
the student. Both can be compared by *events* instead:

* The student's tokens are divided into events; often each token is an event of its own.
* Each of the teacher's tokens has its mass sent to events. Mostly it is one event that gets all of
  it. What is sent to none is part of the *rest*.

A teacher's token means different bytes at different places, so a map has several *sources* for it:

    PLAIN        its bytes, as they are
    LESS_SPACE   without the one space in front that the teacher's tokenizer has added, where the
                 student's adds none (the first token of a text, of a turn)
    MORE_SPACE   with one, where only the student's adds it: nowhere. What a student writes for
                 `sold` with a space in front, ` soldiers` or ` sold`, its own vocabulary decides;
                 only the token that came is known there
    remainder    without its first bytes, where the student has written these already: the student
                 begins a token inside of one of the teacher's. NEVER where it does not

Shape legend: V_T, V_S = vocabularies, R = sources, m = pairs of a source and an event, r = events
that a student token may be divided among.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from distill.alignment.runs import Ints, runs

Ids = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Numbers of the sources that every token has, and how many these are.
PLAIN, LESS_SPACE, MORE_SPACE = 0, 1, 2
SPACES = 3
#: The event of a remainder that a student never asks for: none of its tokens of these bytes ends
#: where it begins. As any event below 0 it is no event.
NEVER = -2


@dataclass(frozen=True, eq=False)
class EventMap:
    """Where the mass of each source goes.

    Attributes:
        event: (m,) int32, the event of each pair; -1 is the rest.
        remainder: (V_T + 1,) int64, the source of each token's remainder after one byte; that after
            i bytes is i - 1 further on.
        first: (R + 1,) int64, the first pair of each source; None: one pair each.
        share: (m,) float32, the share of the source's mass that is sent there; None: all of it.
        of_token: (V_S,) int32, the event of each student token; None: each is its own. (r, V_S)
            where tokens are divided.
        divided: (r, V_S) float32, the share of a token that each of its events gets.
    """

    event: Ids
    remainder: Ints
    first: Ints | None = None
    share: F32 | None = None
    of_token: Ids | None = None
    divided: F32 | None = None

    @property
    def tokens(self) -> int:
        """The number of the teacher's ids."""
        return len(self.remainder) - 1

    @property
    def sources(self) -> int:
        """The number of sources."""
        return len(self.event if self.first is None else self.first[1:])

    @property
    def events(self) -> int:
        """The number of events, where they are not the student's tokens."""
        return 0 if self.of_token is None else int(self.of_token.max(initial=-1)) + 1

    def source_of_token(self, ids: Ints, space: Ints | int = PLAIN) -> Ints:
        """Find the sources of whole tokens, by how a space in front of them is to be read."""
        return np.asarray(ids + self.tokens * np.asarray(space), np.int64)

    def source_behind(self, ids: Ints, written: Ints) -> Ints:
        """Find the sources of tokens of which `written` bytes, at least one, are there already."""
        return self.remainder[ids] + written - 1

    def is_never(self, source: Ints) -> Bools:
        """Tell of which sources a student never asks."""
        pair = source if self.first is None else self.first[source]
        return np.asarray(self.event[pair] == NEVER, np.bool_)

    def event_of(self, student_ids: Ints) -> Ids:
        """Find the event of each student token, or its first if it is divided."""
        if self.of_token is None:
            return student_ids.astype(np.int32)
        of_token = self.of_token if self.of_token.ndim == 1 else self.of_token[0]
        return of_token[student_ids]

    def events_of(self, student_ids: Ints) -> Ids:
        """Find (n, r) the events of each student token: one, or all that it is divided among."""
        if self.of_token is None or self.of_token.ndim == 1:
            return self.event_of(student_ids)[:, None]
        return self.of_token[:, student_ids].T

    def with_ends(self, teacher_ids: list[int], student_id: int) -> "EventMap":
        """Copy this map, with the teacher's end-of-text tokens sent to one student token."""
        target = self.event_of(np.array([student_id]))[0]
        sources = np.concatenate([np.array(teacher_ids) + self.tokens * k for k in range(SPACES)])
        if self.first is None:
            event = self.event.copy()
            event[sources] = target
            return replace(self, event=event)
        is_sent = np.zeros(self.sources, bool)
        is_sent[sources] = True
        return self._resent(is_sent, int(target))

    def _resent(self, is_sent: npt.NDArray[np.bool_], target: int) -> "EventMap":
        """Send all mass of some sources to one event."""
        assert self.first is not None
        assert self.share is not None
        count = np.where(is_sent, 1, np.diff(self.first))
        first = np.concatenate([[0], np.cumsum(count)])
        event, share = np.full(first[-1], target, np.int32), np.ones(first[-1], np.float32)
        others = np.flatnonzero(~is_sent)
        old = runs(self.first[others], self.first[others + 1])[1]
        new = runs(first[others], first[others + 1])[1]
        event[new], share[new] = self.event[old], self.share[old]
        return replace(self, event=event, share=share, first=first)

    def widened(self, tokens: int) -> "EventMap":
        """Add ids without a token: heads are often padded beyond their tokenizer."""
        missing = tokens - self.tokens
        if missing <= 0:
            return self
        whole, one = SPACES * self.tokens, self.first is None
        pairs = np.ones(self.sources, np.int64) if self.first is None else np.diff(self.first)
        ends = np.cumsum(pairs)[:whole].reshape(SPACES, self.tokens)[:, -1]
        place = np.repeat(ends, missing)
        event = np.insert(self.event, place, -1)
        share = None if self.share is None else np.insert(self.share, place, np.float32(1))
        count = np.insert(pairs, np.repeat(self.tokens * np.arange(1, SPACES + 1), missing), 1)
        return replace(
            self,
            event=event,
            share=share,
            first=None if one else np.concatenate([[0], np.cumsum(count)]),
            remainder=np.pad(self.remainder + SPACES * missing, (0, missing), mode="edge"),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """List the arrays that it has, to be kept in a file."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: array for name, array in held.items() if array is not None}

    @classmethod
    def identity(cls, size: int) -> Self:
        """Make the map of one vocabulary to itself, which has no remainders."""
        ids = np.tile(np.arange(size, dtype=np.int32), SPACES)
        return cls(ids, np.full(size + 1, SPACES * size, np.int64))
