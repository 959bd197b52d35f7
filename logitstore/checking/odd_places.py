"""Find sequences whose tokens are not their text: of another tokenizer, row, place or template."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from logitstore.checking.end_check import odd_end
from logitstore.checking.text_check import Placed, TextCheck
from logitstore.console.counts import counted
from logitstore.records import SequenceText

#: The share of sequences that may be odd: a tokenizer's quirk is not another text.
MOST_ODD = 0.1


class OddPlaces(NamedTuple):
    """What is wrong with more sequences than a quirk explains.

    Attributes:
        what: What was found, in how many of them, and an example with its row.
        is_end: Whether it is about what ends turns: contents fit, so only a template is another.
    """

    what: str
    is_end: bool


def odd_places(
    sequences: Iterable[tuple[SequenceText, Placed]],
    check: TextCheck,
    ends: Iterable[int],
    written: Sequence[bytes],
) -> OddPlaces | None:
    """Compare tokens with the text at their places, and with what ends its turns.

    Args:
        sequences: Texts, and the tokens of each that have a place in it.
        check: By the tokenizer that they are said to be of.
        ends: Its tokens that end a turn.
        written: What each of its tokens writes.

    Returns:
        What is wrong; None where all is well in all sequences but a few.
    """
    kept = list(sequences)
    ends = set(ends)
    texts = [(line.row, check.disagreement(line, placed)) for line, placed in kept]
    turns = [(line.row, odd_end(line, placed, ends, written)) for line, placed in kept]
    odd = _of_too_many(texts, "the teacher's tokens are not the text at their places")
    if odd is not None:
        return OddPlaces(odd, is_end=False)
    odd = _of_too_many(turns, "turns end otherwise than in the text")
    return None if odd is None else OddPlaces(odd, is_end=True)


def _of_too_many(found: Sequence[tuple[int, str | None]], what: str) -> str | None:
    odd = [(row, how) for row, how in found if how is not None]
    if len(odd) <= MOST_ODD * len(found):
        return None
    row, how = odd[0]
    return f"in {len(odd)} of {counted(len(found), 'sequence')} {what}, as in row {row:,}, {how}"
