"""Put a sequence together around its records' tokens, where its text was tokenised in another way.

A text may be written in several ways: a server, or a tool whose file was imported, may have drawn
tokens that no tokenizer makes of it. Then the tokens of the records are taken as they are, each at
its place, and the text between two of them is tokenised alone.

Shape legend: T = tokens of the sequence, n = records.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from logitstore.format.numpy_types import I64
from logitstore.records import Segment, SequenceText, TokenRecords
from logitstore.text.tokenizer import ByteTokenizer


class _Stretch(NamedTuple):
    """A run of supervised text: where it lies in the bytes of the text, and how many precede it."""

    start: int
    stop: int
    before: int


def around_records(
    line: SequenceText, records: TokenRecords, tokenizer: ByteTokenizer, head: I64
) -> tuple[I64, I64]:
    """Take the records' tokens, and tokenise the text between them piece by piece.

    Args:
        line: The text.
        records: Its records.
        tokenizer: The teacher's.
        head: The tokens before the text.

    Returns:
        (T,) the tokens, and (n,) the places of the records among them.
    """
    data = "".join(segment.text for segment in line.segments).encode()
    stretches = _stretches(line.segments)
    ids: list[int] = head.tolist()
    positions: list[int] = []
    cursor = stretch = 0
    # An id beyond the vocabulary is the store's fault, which `verify` finds; any bytes do for it.
    known = np.minimum(records.token_ids.astype(np.int64), tokenizer.size - 1)
    written = tokenizer.written(known)
    starts = (records.byte_starts - line.supervised_start).tolist()
    for token, start, length, text in zip(
        records.token_ids.tolist(), starts, records.byte_lengths.tolist(), written, strict=True
    ):
        while stretch + 1 < len(stretches) and _is_behind(
            stretches[stretch], start, length, cursor
        ):
            stretch += 1
        place = max(_place(stretches, stretch, start), cursor)
        begin, stop = _reach(data, cursor, place, text, length)
        ids += _between(data[cursor:begin], tokenizer)
        positions.append(len(ids))
        ids.append(token)
        cursor = stop
    ids += _between(data[cursor:], tokenizer)
    return np.array(ids, np.int64), np.array(positions, np.int64)


def _stretches(segments: Sequence[Segment]) -> list[_Stretch]:
    found: list[_Stretch] = []
    place = counted = 0
    for segment in segments:
        size = len(segment.text.encode())
        if segment.supervised:
            found.append(_Stretch(place, place + size, counted))
            counted += size
        place += size
    return found


def _is_behind(stretch: _Stretch, start: int, length: int, cursor: int) -> bool:
    """Tell whether a record lies behind a stretch, whose own end does not; others' ends do.

    Args:
        stretch: The run of supervised text.
        start, length: Of the record, in supervised bytes.
        cursor: Where the token before ends, in the text.
    """
    end = stretch.before + stretch.stop - stretch.start
    is_next = length > 0 or cursor > stretch.stop
    return start > end or (start == end and is_next)


def _place(stretches: Sequence[_Stretch], i: int, start: int) -> int:
    """Find the place in the text of a place in its supervised bytes."""
    return stretches[i].start + start - stretches[i].before if stretches else 0


def _reach(data: bytes, cursor: int, place: int, written: bytes, length: int) -> tuple[int, int]:
    """Find where a token begins and ends in the text, its bytes in context with it.

    Args:
        data: The text.
        cursor: The end of the token before.
        place: Where its supervised bytes begin.
        written: What it writes.
        length: How many of these are supervised; 0 for an end, which may be spelt in the text.
    """
    if not length:
        rest = data[place:]
        space = len(rest) - len(rest.lstrip())
        is_spelt = bool(written) and rest[space:].startswith(written)
        return (place + space, place + space + len(written)) if is_spelt else (place, place)
    before = max(len(written) - length, 0)
    while not data[cursor:place].endswith(written[:before]):
        before -= 1
    behind = written[before + length :]
    stop = place + length
    return place - before, stop + len(behind) * data[stop:].startswith(behind)


def _between(data: bytes, tokenizer: ByteTokenizer) -> list[int]:
    """Tokenise what lies between two records, which may begin or end inside a character."""
    ids: list[int] = []
    while data:
        try:
            stop = after = len(data)
            data.decode()
        except UnicodeDecodeError as error:
            stop, after = error.start, error.end
        text = Segment(data[:stop].decode(), False)
        ids += tokenizer.encode([text], add_eos=False, add_prefix=False).token_ids.tolist()
        pieces = [bytes([byte]) for byte in data[stop:after]]
        ids += [
            tokenizer.token_bytes.index(piece) for piece in pieces if piece in tokenizer.token_bytes
        ]
        data = data[after:]
    return ids
