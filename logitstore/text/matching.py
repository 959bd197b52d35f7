"""Find in a student's rendering of a conversation what a store has supervised of it.

A store has the supervised text of the teacher's rendering in *stretches*: what a message thought,
says, calls. The student's template writes the same conversation in its own way. A stretch and a
piece of the student's are one text if they are equal but for white space at their ends, where
templates trim; what only one side writes there is not trained on. A stretch may also hold more in
front, which only the teacher's template wrote there (an empty think block). Tool calls have a
spelling of each template's own: where that differs, their end alone is compared.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from logitstore.records import Segment, SequenceText
from logitstore.text.conversation import Conversation
from logitstore.text.ends import CALLS, THINKING
from logitstore.text.slots import calls_of, texts_of
from logitstore.text.turns import Rendering

#: What templates do with the white space at the ends of a text, as far as known.
_TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    str.strip,
    str.lstrip,
    str.rstrip,
    lambda text: text.strip("\r\n"),
    lambda text: text.lstrip("\r\n"),
    lambda text: text.rstrip("\r\n"),
)
#: Comparisons of a row at most: those of a stranger could be made to take hours.
_MOST_COMPARED = 100_000
#: How much more two equal texts fit than one that ends with the other.
_WHOLLY = 3


class Stretch(NamedTuple):
    """A stretch of supervised text of a store's row."""

    role: str | None
    text: str


class Written(NamedTuple):
    """A piece of the student's rendering.

    Attributes:
        role: As in `Piece`.
        text: The text.
        message: The number of its message.
        source: What the message has, before a template trims it.
        start: Its first character in the rendering; None where the student's template does not
            write it, beside tool calls or with them.
    """

    role: str | None
    text: str
    message: int
    source: str
    start: int | None


class Match(NamedTuple):
    """A stretch and a piece that are one text, as characters of each that both have.

    Attributes:
        stretch: The number of the stretch.
        piece: The piece.
        start: Where it starts in the stretch.
        piece_start: Where it starts in the piece.
        length: Its length.
    """

    stretch: int
    piece: Written
    start: int
    piece_start: int
    length: int


def pieces_of(rendering: Rendering, conversation: Conversation) -> list[Written]:
    """List the pieces of a rendering, and what messages with tool calls say that is not written."""
    pieces = []
    for piece in rendering.pieces:
        text, source = rendering.said(piece), _content(conversation, piece.message)
        is_content = piece.role not in (THINKING, CALLS) and source.strip() == text.strip()
        source = source if is_content else text
        pieces.append(Written(piece.role, text, piece.message, source, piece.start))
    spoken = {piece.message for piece in rendering.pieces if piece.role not in (THINKING, CALLS)}
    for i in set(conversation.supervised) - spoken:
        text, message = _content(conversation, i), conversation.messages[i]
        if text.strip() and calls_of(message):
            pieces.append(Written(str(message["role"]), text, i, text, None))
    return sorted(pieces, key=lambda piece: (piece.message, piece.role == CALLS))


def rows_of(line: SequenceText, pieces: Sequence[Written]) -> Iterator[list[Stretch]]:
    """List the supervised stretches of a line's row; several guesses for a window of it.

    A window has no more than its own part of the row, so the rest is what fits: the contents as
    some template may have trimmed them. The window shows where its own stretches end.
    """
    if line.status != "split":
        yield [Stretch(s.role, s.text) for s in line.segments if s.supervised]
        return
    for missing in ((), (THINKING,), (CALLS,), (THINKING, CALLS)):
        chosen = [piece for piece in pieces if piece.role not in missing]
        for trim in _TRIMS:
            row = [Stretch(piece.role, trim(piece.source)) for piece in chosen]
            whole = "".join(stretch.text for stretch in row).encode()
            if is_part(line, whole, *_ends(row, chosen)):
                yield row


def is_part(
    line: SequenceText, whole: bytes, ends: Collection[int], maybe: Collection[int] = ()
) -> bool:
    """Tell whether a window may be cut from a row.

    Args:
        line: The window.
        whole: The row's supervised text.
        ends: Bytes of it where a stretch ends, and context follows.
        maybe: Bytes where that may be so.
    """
    own, low = line.supervised_bytes, line.supervised_start
    stop = low + len(own)
    if whole[low:stop] != own:
        return False
    seen = {low + end for end in ends_of(line.segments)}
    inside = {end for end in ends if low < end < stop}
    return inside <= seen <= {*ends, *maybe, low}


def ends_of(segments: Sequence[Segment]) -> set[int]:
    """List where supervised text ends and context follows, in supervised bytes."""
    place, is_open, ends = 0, False, set()
    for segment in segments:
        if segment.supervised:
            place += len(segment.text.encode())
            is_open = True
        elif segment.text and is_open:
            ends.add(place)
            is_open = False
    return ends


def _ends(row: Sequence[Stretch], pieces: Sequence[Written]) -> tuple[set[int], set[int]]:
    """List where stretches end and context follows, and where it may follow: before tool calls."""
    ends: set[int] = set()
    maybe: set[int] = set()
    place = 0
    for stretch, piece, behind in zip(row, pieces, [*pieces[1:], None], strict=True):
        place += len(stretch.text.encode())
        is_called = behind is not None and behind.role == CALLS and behind.message == piece.message
        (maybe if is_called else ends).add(place)
    return ends, maybe


def matches(row: Sequence[Stretch], pieces: Sequence[Written]) -> list[Match] | None:
    """Match the stretches of a row with a student's pieces, in order.

    Returns:
        None where something that a message says has no match: the student's template changes it.
    """
    pairs = _pairs(row, pieces)
    matched = {i for i, _ in pairs}
    for i, stretch in enumerate(row):
        is_content = stretch.role not in (THINKING, CALLS)
        if i not in matched and is_content and stretch.text.strip():
            return None
    return [_common(i, row[i], pieces[j]) for i, j in pairs if pieces[j].start is not None]


def _pairs(row: Sequence[Stretch], pieces: Sequence[Written]) -> list[tuple[int, int]]:
    """Pair stretches and pieces that fit, in order, so that they fit best in all."""
    if len(row) == len(pieces) and all(map(_fits, row, pieces)):
        return [(i, i) for i in range(len(row))]
    front = _alike(row, pieces)
    back = _alike(row[front:][::-1], pieces[front:][::-1])
    rows, rest = row[front : len(row) - back], pieces[front : len(pieces) - back]
    if len(rows) * len(rest) > _MOST_COMPARED:
        rows = rest = ()
    return [
        *((i, i) for i in range(front)),
        *((front + i, front + j) for i, j in _best_pairs(rows, rest)),
        *((len(row) - n, len(pieces) - n) for n in range(back, 0, -1)),
    ]


def _alike(row: Sequence[Stretch], pieces: Sequence[Written]) -> int:
    """Count the pairs from the first on that are one text wholly."""
    both = zip(row, pieces, strict=False)
    return sum(1 for _ in takewhile(lambda pair: _fits(*pair) == _WHOLLY, both))


def _best_pairs(row: Sequence[Stretch], pieces: Sequence[Written]) -> list[tuple[int, int]]:
    best = [[0] * (len(pieces) + 1) for _ in range(len(row) + 1)]
    fits = [[_fits(stretch, piece) for piece in pieces] for stretch in row]
    for i in range(len(row) - 1, -1, -1):
        for j in range(len(pieces) - 1, -1, -1):
            both = best[i + 1][j + 1] + fits[i][j] if fits[i][j] else 0
            best[i][j] = max(both, best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(row) and j < len(pieces):
        if fits[i][j] and best[i][j] == best[i + 1][j + 1] + fits[i][j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _fits(stretch: Stretch, piece: Written) -> int:
    """Tell how well a stretch and a piece are one text: wholly, at its end, or not (0)."""
    if CALLS in (stretch.role, piece.role):
        return _WHOLLY * (stretch.role == piece.role)
    wanted, text = piece.text.strip(), stretch.text.strip()
    if wanted == text:
        return _WHOLLY * ((stretch.role == THINKING) == (piece.role == THINKING))
    if THINKING in (stretch.role, piece.role):
        return 0
    # An empty answer ends whatever the teacher's template writes; but it must have been empty.
    return int(text.endswith(wanted) if wanted else not piece.source.strip())


def _common(i: int, stretch: Stretch, piece: Written) -> Match:
    """Find the characters that both sides have."""
    core, text = piece.text.strip(), stretch.text.rstrip()
    if not text.endswith(core) or (piece.role == CALLS and text.strip() != core):
        return Match(i, piece, len(stretch.text), len(piece.text), 0)
    if not core:
        is_blank = not text
        length = _shared(stretch.text, piece.text) if is_blank else 0
        start = 0 if is_blank else len(stretch.text)
        return Match(i, piece, start, 0 if is_blank else len(piece.text), length)
    start, piece_start = len(text) - len(core), piece.text.index(core)
    before = _shared(stretch.text[:start][::-1], piece.text[:piece_start][::-1])
    behind = _shared(stretch.text[len(text) :], piece.text[piece_start + len(core) :])
    length = before + len(core) + behind
    return Match(i, piece, start - before, piece_start - before, length)


def _shared(a: str, b: str) -> int:
    """Count the characters that two texts begin with alike."""
    both = list(zip(a, b, strict=False))
    return next((n for n, (x, y) in enumerate(both) if x != y), len(both))


def _content(conversation: Conversation, i: int) -> str:
    return "".join(text for _, text in texts_of(conversation.messages[i]))
