"""Say which characters of a rendered conversation are the assistant's, and cut the text there."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from logitstore.records import Segment

#: What is supervised of a turn: what the message says, or all that the template writes there.
SupervisedText = Literal["content", "turn"]
#: Which turns of a conversation have records.
SUPERVISE = ("all", "last")
MODES: tuple[SupervisedText, ...] = ("content", "turn")


class Piece(NamedTuple):
    """A stretch of a rendered conversation that is trained on.

    Attributes:
        start: Its first character.
        stop: The character after its last.
        message: The number of the message that it belongs to.
        role: The message's, or what of it this is: `thinking` or `tool_calls`.
    """

    start: int
    stop: int
    message: int
    role: str


class Rendering(NamedTuple):
    """A conversation as a chat template writes it.

    Attributes:
        text: The whole text.
        pieces: What is trained on, in order; they do not overlap.
        unwritten: Supervised messages that are left out, for the template does not write their tool
            calls: a student would learn to say nothing, and stop.
    """

    text: str
    pieces: tuple[Piece, ...]
    unwritten: tuple[int, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The text cut into context and supervised segments."""
        return cut(self.text, self.pieces)

    def said(self, piece: Piece) -> str:
        """Return the text of a piece."""
        return self.text[piece.start : piece.stop]


def cut(text: str, pieces: Sequence[Piece]) -> tuple[Segment, ...]:
    """Cut text into context and supervised segments; drop empty context, keep empty turns."""
    segments, done = [], 0
    for piece in sorted(pieces):
        if piece.start > done:
            segments.append(Segment(text[done : piece.start], False))
        segments.append(Segment(text[piece.start : piece.stop], True, piece.role))
        done = piece.stop
    if done < len(text):
        segments.append(Segment(text[done:], False))
    return tuple(segments)
