"""Decide what of a rendered conversation is trained on, from where its texts are written.

Of a supervised message that is, in order: what it thought (a field of its own, or between tags),
what it says, and its tool calls as the template writes them. All else is the template's: headers,
channels, an empty think block. With `turn`, what the template writes inside the turn is trained on
too: all from its header to its end.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from logitstore.errors import InputError
from logitstore.text.conversation import Conversation, Message
from logitstore.text.ends import CALLS, THINKING
from logitstore.text.sentinels import Place, find_slots
from logitstore.text.slots import CLOSE_TAG, Slot, calls_of, holders, texts_of
from logitstore.text.turns import Piece, Rendering, SupervisedText

_CLOSING = re.compile(r"\s*</think>\s*")
_FoundSlots = list[tuple[Slot, Place | None]]


class Writer(NamedTuple):
    """How the conversation at hand is written.

    Attributes:
        whole: Renders other messages in its place.
        before: Renders the messages before a number; True: up to where the assistant begins.
            Raises an `InputError` where the template rejects them.
        ends: The special tokens that end a turn, as they are spelt.
    """

    whole: Callable[[Sequence[Message]], str]
    before: Callable[[int, bool], str]
    ends: tuple[str, ...]


def by_slots(
    text: str, conversation: Conversation, writer: Writer, mode: SupervisedText
) -> Rendering | None:
    """Find the supervised text of a conversation by where its slots are written.

    Args:
        text: The conversation, rendered.
        conversation: The conversation.
        writer: Renders it.
        mode: What is supervised of a turn.

    Returns:
        None where the template looks into what it writes, so that this cannot be told; or where it
        does not write what a message says.
    """
    found = _slots(text, conversation, writer)
    if found is None:
        return None
    turns = _Turns(text, conversation, writer, found)
    pieces: list[Piece] = []
    unwritten = []
    for i in conversation.supervised:
        calls = [place for slot, place in turns.of(i) if slot.role == CALLS]
        if None in calls or len(calls) < len(calls_of(conversation.messages[i])):
            unwritten.append(i)
            continue
        if not calls and any(
            place is None and slot.text.strip() and slot.role != THINKING
            for slot, place in turns.of(i)
        ):
            return None
        pieces += turns.whole(i) if mode == "turn" else turns.contents(i)
    if any(a.stop > b.start for a, b in itertools.pairwise(pieces)):
        return None
    return Rendering(text, tuple(pieces), tuple(unwritten))


def _slots(text: str, conversation: Conversation, writer: Writer) -> _FoundSlots | None:
    """Find the slots of the supervised messages; with thoughts in tags apart if need be."""
    messages, supervised = conversation.messages, conversation.supervised
    found = find_slots(text, messages, holders(messages, supervised), writer.whole)
    if found is not None or not _has_tags(messages, supervised):
        return found
    split = holders(messages, supervised, splits_thoughts=True)
    return find_slots(text, messages, split, writer.whole)


def _has_tags(messages: Sequence[Message], supervised: Sequence[int]) -> bool:
    return any(CLOSE_TAG in text for i in supervised for _, text in texts_of(messages[i]))


class _Turns:
    """The turns of a conversation whose slots have been found."""

    def __init__(
        self, text: str, conversation: Conversation, writer: Writer, found: _FoundSlots
    ) -> None:
        self._text, self._conversation, self._writer = text, conversation, writer
        self._found = found
        ends = "|".join(map(re.escape, writer.ends))
        self._ends = re.compile(ends) if ends else None
        self._all: _FoundSlots | None = None

    def of(self, i: int) -> _FoundSlots:
        """List the slots of message `i`."""
        return [each for each in self._found if each[0].message == i]

    def contents(self, i: int) -> list[Piece]:
        """List what message `i` thought, says and calls."""
        pieces: list[Piece] = []
        for slot, place in self.of(i):
            if place is None or slot.role == CALLS:
                continue
            if pieces and pieces[-1].stop == place[0] and pieces[-1].role == slot.role:
                pieces[-1] = pieces[-1]._replace(stop=place[1])  # parts of one content
            else:
                pieces.append(Piece(*place, i, slot.role))
        pieces.sort()
        calls = [place for slot, place in self.of(i) if slot.role == CALLS and place is not None]
        if calls:
            start = self._calls_start(i, pieces, min(calls)[0])
            stop = self._end_behind(i, max(calls)[1])
            if start is not None and stop is not None:
                pieces.append(Piece(start, stop, i, CALLS))
        return pieces

    def _calls_start(self, i: int, pieces: Sequence[Piece], first: int) -> int | None:
        """Find where the calls of message `i` begin: behind what it says, or behind a header."""
        if not pieces:
            return self._start(i, first)
        place = self._behind(pieces[-1])
        ended = self._ends and self._ends.search(self._text, place, first)
        return self._header_behind(i, place, first) if ended else place

    def _behind(self, piece: Piece) -> int:
        """Find where what follows a piece of the same message begins."""
        closing = _CLOSING.match(self._text, piece.stop) if piece.role == THINKING else None
        return piece.stop if closing is None else closing.end()

    def whole(self, i: int) -> list[Piece]:
        """List the one piece that is all of the turn of message `i`, without its end."""
        places = [place for _, place in self.of(i) if place is not None]
        if not places:
            return []
        first, last = min(places)[0], max(stop for _, stop in places)
        start, stop = self._start(i, first), self._end_behind(i, last)
        if stop is None or not self._text[last:stop].strip():
            stop = last  # white space in front of the end belongs to the end
        role = str(self._conversation.messages[i]["role"])
        return [Piece(first if start is None else start, stop, i, role)]

    def _start(self, i: int, first: int) -> int | None:
        """Find where the turn of message `i` begins, behind its header and before `first`."""
        try:
            head = self._writer.before(i, True)
        except InputError:  # a template that takes whole conversations alone
            return None
        if self._text.startswith(head) and len(head) <= first:
            return len(head)
        low = max((p[1] for slot, p in self._found if p and slot.message < i), default=0)
        return self._header_behind(i, low, first)

    def _header_behind(self, i: int, low: int, first: int) -> int | None:
        """Find where the header of the assistant ends, between two places."""
        try:
            head, before = self._writer.before(i, True), self._writer.before(i, False)
        except InputError:
            return None
        header = head.removeprefix(before)
        if header == head:
            return None
        for wanted in dict.fromkeys([header, header.split("\n")[0] + "\n"]):
            place = self._text.rfind(wanted, low, first) if wanted.strip() else -1
            if place >= 0:
                return place + len(wanted)
        return None

    def _end_behind(self, i: int, place: int) -> int | None:
        """Find the first end of a turn behind a place, before what the next message says."""
        end = self._ends and self._ends.search(self._text, place, self._next(i))
        return end.start() if end else None

    def _next(self, i: int) -> int:
        """Find where the first text of a later message is written; the end of the text if none."""
        if self._all is None:
            messages = self._conversation.messages
            every = holders(messages, range(len(messages)))
            self._all = find_slots(self._text, messages, every, self._writer.whole) or self._found
        later = (place[0] for slot, place in self._all if place and slot.message > i)
        return min(later, default=len(self._text))
