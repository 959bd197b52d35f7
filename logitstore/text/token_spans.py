"""Turn a tokenizer's offsets into byte spans, where a normaliser has changed the text.

Offsets count characters of the original text. Where several tokens share a character, their offsets
overlap: byte fallback, byte-level tokens that end inside a character, one character normalised to
several. Such a run is laid out by its bytes if these are the text's. Otherwise the character is
divided among its tokens, so that the run begins and ends where it should, and the boundaries inside
it lie inside the character, where no other tokenizer has one: aligned groups still close around it.

Shape legend: T = tokens of a text.
"""

import itertools
import unicodedata

import numpy as np

from logitstore.format.numpy_types import I64

_SPACE = 0x20


def spans_from_offsets(
    data: bytes, offsets: I64, written: bytes, lengths: I64
) -> tuple[I64, I64] | None:
    """Find where tokens lie in `data`, from a tokenizer's offsets.

    Args:
        data: The text.
        offsets: (T, 2) first character and character after the last, in the original text.
        written: The bytes of all tokens, one after the other.
        lengths: (T,) how many of them each token has.

    Returns:
        (T,) first byte, (T,) byte after the last; or None where the offsets run backwards.
    """
    if len(offsets) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    places = _character_places(data)
    if offsets.min() < 0 or offsets.max() >= len(places):
        return None
    low, high = places[offsets[:, 0]], places[offsets[:, 1]]
    empty = low == high
    high = _over_marks(data, low, high)
    # A token of no width may report any place: it stands where the text before it ended.
    low[empty] = high[empty] = np.maximum.accumulate(np.where(empty, 0, high))[empty]
    if (high < low).any() or (np.diff(low) < 0).any() or (np.diff(high) < 0).any():
        return None
    origin = np.cumsum(lengths) - lengths
    origin, lengths, high = _without_added_spaces(data, written, origin, lengths, low, high)
    starts, ends = _divided(low, high)
    return _laid_out(data, written, origin, lengths, (low, high), (starts, ends))


def _over_marks(data: bytes, low: I64, high: I64) -> I64:
    """Move ends behind marks that a normaliser has joined to, or stripped off, their letter.

    The offsets of a composed letter stop before the marks it was composed from, which would leave
    a hole in the middle of what a reader takes for one letter.
    """
    wide = np.flatnonzero(low < high)
    ends = high[wide]
    after = np.append(low[wide][1:], len(data))
    units = np.frombuffer(data + b"\0", np.uint8)
    moved = ends.copy()
    for i in np.flatnonzero((after > ends) & (units[ends] >= 0x80)):
        gap = data[ends[i] : after[i]].decode()
        marks = "".join(itertools.takewhile(_continues_a_letter, gap))
        moved[ends == ends[i]] += len(marks.encode())
    high = high.copy()
    high[wide] = moved
    return high


def _continues_a_letter(character: str) -> bool:
    """Tell whether this is a combining mark, or a vowel or final consonant of a Korean syllable."""
    is_jamo = "\u1160" <= character <= "\u11ff"
    return is_jamo or unicodedata.category(character).startswith("M")


def _without_added_spaces(
    data: bytes, written: bytes, origin: I64, lengths: I64, low: I64, high: I64
) -> tuple[I64, I64, I64]:
    """Remove the space from tokens that begin with one where the text has none.

    A token that is then empty and shares its character with the next one has no width: it is the
    mark alone (`▁`), put in front of a word.
    """
    text = np.frombuffer(data + b"\0", np.uint8)
    output = np.frombuffer(written + b"\0", np.uint8)
    added = (lengths > 0) & (output[origin] == _SPACE) & (text[low] != _SPACE)
    origin, lengths = origin + added, lengths - added
    shared = np.append(low[1:] == low[:-1], False)
    return origin, lengths, np.where(added & shared & (lengths == 0), low, high)


def _divided(low: I64, high: I64) -> tuple[I64, I64]:
    """Divide characters among overlapping tokens: each of n gets about 1/n of the bytes.

    Of two or more bytes the first token has at least one and so has the last; of one byte, the
    last token has it: then every token of the run lies between the run's two ends.
    """
    starts, ends = low.copy(), high.copy()
    late = np.flatnonzero(low[1:] < high[:-1]) + 1  # tokens that begin inside the one before
    if len(late) == 0:
        return starts, ends
    first, last = low[late], high[late - 1]
    same = (np.diff(first) == 0) & (np.diff(last) == 0) & (np.diff(late) == 1)
    heads = np.flatnonzero(np.append(True, ~same))
    sizes = np.diff(np.append(heads, len(late)))
    rank = np.arange(len(late)) - np.repeat(heads, sizes) + 1
    width, parts = last - first, np.repeat(sizes, sizes) + 1
    inside = np.minimum(np.maximum(-(-rank * width // parts), 1), width - 1)
    cuts = np.maximum.accumulate(first + inside)
    starts[late], ends[late - 1] = cuts, cuts
    return starts, ends


def _laid_out(
    data: bytes,
    written: bytes,
    origin: I64,
    lengths: I64,
    reported: tuple[I64, I64],
    spans: tuple[I64, I64],
) -> tuple[I64, I64]:
    """Find exact spans for runs of overlapping tokens that write just the bytes they cover."""
    low, high = reported
    starts, ends = spans
    heads = np.flatnonzero(np.append(True, low[1:] >= high[:-1]))
    sizes = np.diff(np.append(heads, len(low)))
    run = np.repeat(np.arange(len(heads)), sizes)
    covered = high[heads + sizes - 1] - low[heads]
    exact = (sizes > 1) & (np.add.reduceat(lengths, heads) == covered)
    before = np.cumsum(lengths) - lengths
    place = low[heads][run] + before - before[heads][run]

    chosen = np.flatnonzero(exact[run])
    count = lengths[chosen]
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    text = np.frombuffer(data, np.uint8)[np.repeat(place[chosen], count) + within]
    output = np.frombuffer(written, np.uint8)[np.repeat(origin[chosen], count) + within]
    exact[np.repeat(run[chosen], count)[text != output]] = False

    sure = exact[run]
    return np.where(sure, place, starts), np.where(sure, place + lengths, ends)


def _character_places(data: bytes) -> I64:
    """Find the first byte of every character of UTF-8 text, and the end of the text."""
    units = np.frombuffer(data, np.uint8)
    return np.append(np.flatnonzero((units & 0xC0) != 0x80), len(data)).astype(np.int64)
