"""Read a store's conversation with another tokenizer and template, at the store's own places.

The tokens of the result count their bytes as the store's records do, in the supervised text of the
row as the teacher's template wrote it, whatever the student's template writes between and around.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from logitstore.format.numpy_types import I64
from logitstore.records import Segment, SequenceText
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation
from logitstore.text.ends import count_endless, count_turns
from logitstore.text.matching import (
    Match,
    Stretch,
    ends_of,
    is_part,
    matches,
    pieces_of,
    rows_of,
)
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.text.turns import MODES, Piece, Rendering, SupervisedText, cut

#: The key of a store's rendering that says what of a turn is supervised. Older stores lack it.
SUPERVISED_TEXT = "supervised_text"


class StudentTurns(NamedTuple):
    """A conversation as a student reads it.

    Attributes:
        segments: Its text.
        tokens: Its tokens; `byte_starts` count in the supervised text of the store's row.
        unwritten: Supervised turns that are left out: their tool calls are not written.
        endless: Supervised turns that no token ends.
        turns: All supervised turns, those that are left out, too.
    """

    segments: tuple[Segment, ...]
    tokens: TokenizedText
    unwritten: int = 0
    endless: int = 0
    turns: int = 0


def read_turns(
    line: SequenceText,
    rendering: Mapping[str, Any],
    template: ChatTemplate,
    tokenizer: ByteTokenizer,
    where: str,
    *,
    has_end: bool = True,
) -> StudentTurns | None:
    """Render a line's conversation, and find in it what the store supervises.

    Args:
        line: The line; it has messages.
        rendering: How the store's rows became text (`StoreSpec.rendering`).
        template: The student's.
        tokenizer: The student's, which knows the ends that its template writes.
        where: Names the row in messages.
        has_end: Whether the last turn has an end.

    Returns:
        None where the template changes what is supervised.

    Raises:
        InputError: The template rejects the conversation, or the store has none.
    """
    assert line.messages is not None
    conversation = Conversation.from_json(line.messages, where)
    written: dict[str, Rendering] = {}
    for mode in _modes(rendering):
        written[mode] = template.render(conversation, where, mode)
        if _is_same(line, written[mode].segments):
            return _encoded(written[mode], written[mode].segments, tokenizer, has_end)
    found = written["content"]
    pieces = pieces_of(found, conversation)
    for row in rows_of(line, pieces):
        matched = matches(row, pieces)
        if matched is not None:
            return _at_matches(found, row, matched, tokenizer, has_end)
    return None


def _modes(rendering: Mapping[str, Any]) -> tuple[SupervisedText, ...]:
    """List what may be supervised of a turn in a store, the most probable first."""
    said = rendering.get(SUPERVISED_TEXT)
    if said == "content":
        return MODES[:1]
    return MODES[::-1] if said == "turn" else MODES


def _is_same(line: SequenceText, segments: Sequence[Segment]) -> bool:
    """Tell whether these have the supervised text of the line."""
    written = "".join(s.text for s in segments if s.supervised).encode()
    if line.status == "split":
        return is_part(line, written, ends_of(segments))
    return written == line.supervised_bytes


def _ended(segments: Sequence[Segment], has_end: bool) -> tuple[Segment, ...]:
    """Drop what a template writes behind the last supervised text, where that has no end."""
    last = max((i for i, s in enumerate(segments) if s.supervised), default=len(segments) - 1)
    return tuple(segments if has_end else segments[: last + 1])


def _encoded(
    rendering: Rendering, segments: Sequence[Segment], tokenizer: ByteTokenizer, has_end: bool
) -> StudentTurns:
    """Tokenise a rendering that is cut into segments."""
    kept = _ended(segments, has_end)
    tokens = tokenizer.encode(kept, add_eos=False, add_prefix=False)
    endless = count_endless(kept, tokens.byte_starts, tokens.is_eos)
    unwritten = len(rendering.unwritten)
    return StudentTurns(kept, tokens, unwritten, endless, count_turns(kept) + unwritten)


def _at_matches(
    rendering: Rendering,
    row: Sequence[Stretch],
    matched: Sequence[Match],
    tokenizer: ByteTokenizer,
    has_end: bool,
) -> StudentTurns:
    """Supervise what both sides have, and count its bytes as the store does."""
    pieces = [
        Piece(start, start + m.length, m.piece.message, m.piece.role or "")
        for m in matched
        for start in [(m.piece.start or 0) + m.piece_start]
    ]
    read = _encoded(rendering, cut(rendering.text, pieces), tokenizer, has_end)
    sizes = np.array([len(rendering.said(piece).encode()) for piece in pieces], np.int64)
    stops = [len(rendering.text[: piece.stop].encode()) for piece in pieces]
    bounds = np.cumsum([0, *(len(stretch.text.encode()) for stretch in row)])
    before = [len(row[m.stretch].text[: m.start].encode()) for m in matched]
    stretches = np.array([m.stretch for m in matched], np.int64)
    places = bounds[stretches] + np.array(before, np.int64)
    starts = _moved(read.tokens, sizes, places, np.array(stops, np.int64), bounds[stretches + 1])
    return read._replace(tokens=replace(read.tokens, byte_starts=starts))


def _moved(tokens: TokenizedText, sizes: I64, places: I64, stops: I64, ends: I64) -> I64:
    """Count the supervised bytes of the store's row before each token.

    Args:
        tokens: The tokens, which count in the supervised bytes of the student's own text.
        sizes: Bytes of each of its pieces.
        places: The supervised bytes of the store's row before each.
        stops: Bytes of the text before the end of each.
        ends: The supervised bytes of the row before the end of the piece's stretch.
    """
    if not tokens.has_record.any():
        return tokens.byte_starts
    first = np.cumsum(sizes) - sizes
    has_bytes = np.flatnonzero(sizes)
    at = np.searchsorted(first[has_bytes], tokens.byte_starts, side="right") - 1
    piece = has_bytes[at] if len(has_bytes) else np.zeros(len(at), np.int64)
    moved = tokens.byte_starts - first[piece] + places[piece]
    ended = np.maximum(np.searchsorted(stops, tokens.text_ends, side="left") - 1, 0)
    moved = np.where(tokens.is_eos, ends[ended], moved)
    starts: I64 = np.where(tokens.has_record, moved, 0)
    return starts
