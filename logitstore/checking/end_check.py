"""Check that what ends the turns of a store is what its text has there.

Text of one chat template beside the tokens of another has mostly the same contents, so the records
lie where they must. What ends a turn is each template's own, and a record without bytes, which no
other comparison looks at: it must be the token that the text goes on with behind the turn, white
space aside.
"""

from collections.abc import Collection, Sequence

from logitstore.checking.text_check import Placed
from logitstore.records import SequenceText


def odd_end(
    line: SequenceText,
    records: Placed,
    ends: Collection[int],
    written: Sequence[bytes],
) -> str | None:
    """Describe the first end of a turn that the text does not have; None: it has all of them.

    Args:
        line: The text. One that ends with a turn says nothing of its end.
        records: Its records, or its tokens.
        ends: Ids of the teacher's tokens that end a turn.
        written: What each of the teacher's tokens writes.
    """
    behind = _behind(line)
    for t in range(len(records.token_ids)):
        token = int(records.token_ids[t])
        if int(records.byte_lengths[t]) or token not in ends:
            continue
        place = int(records.byte_starts[t]) - line.supervised_start
        found = behind.get(place, [])
        # Of an empty turn that a window begins with, no segment says where in the context it stood.
        is_there = bytes.__contains__ if place == 0 else _begins_with
        if found and not any(is_there(text, written[token]) for text in found):
            return (
                f"record {t}: token {token} ends a turn with {written[token]!r}, where the text "
                f"goes on with {found[-1][:40]!r}"
            )
    return None


def _begins_with(text: bytes, end: bytes) -> bool:
    return text.lstrip().startswith(end)


def _behind(line: SequenceText) -> dict[int, list[bytes]]:
    """Find the context that stands at each byte of the supervised text, a list for empty turns."""
    found: dict[int, list[bytes]] = {}
    place, is_open = 0, False
    for segment in line.segments:
        data = segment.text.encode()
        if segment.supervised:
            place, is_open = place + len(data), False
        elif data and is_open:
            found[place][-1] += data
        elif data:
            found.setdefault(place, []).append(data)
            is_open = True
    return found
