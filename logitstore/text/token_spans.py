"""Turn a tokenizer's offsets into byte spans, where a normaliser has changed the text.

Offsets count characters of the original text. Where several tokens share a character, their offsets
overlap: byte fallback, byte-level tokens that end inside a character, one character normalised to
several. Such a run is laid out by its bytes if these are the text's. Otherwise the character is
divided among its tokens, so that the run begins and ends where it should, and the boundaries inside
it lie inside the character, where no other tokenizer has one: aligned groups still close around it.

White space that no offset covers belongs to the token behind it. Some tokenizers (T5, WordPiece)
cut a text at its white space and report words without it, though `▁the` stands for ` the`.

Shape legend: T = tokens of a text.
"""

import itertools
import unicodedata
from typing import Any, NamedTuple

import numpy as np

from logitstore.format.numpy_types import I64, Bools

_SPACE = 0x20
_ASCII_SPACES = np.frombuffer(b" \t\n\v\f\r", np.uint8)


class Spelling(NamedTuple):
    """How what tokens write compares with the text that they cover.

    Attributes:
        is_verbatim: (T,) the same bytes, perhaps behind an added space.
        has_added_space: (T,) one space, then the same bytes.
    """

    is_verbatim: Bools
    has_added_space: Bools


def spelling(data: bytes, starts: I64, ends: I64, written: bytes, lengths: I64) -> Spelling:
    """Compare what tokens write with the bytes of `data` that they cover.

    Args:
        data: The text.
        starts: (T,) first byte of each token in it.
        ends: (T,) byte after the last.
        written: The bytes of all tokens, one after the other.
        lengths: (T,) how many of them each token has.
    """
    output = np.frombuffer(written + b"\0", np.uint8)
    origin, width = np.cumsum(lengths) - lengths, ends - starts
    added = (lengths == width + 1) & (output[origin] == _SPACE)
    is_same = added | (lengths == width)
    chosen = np.flatnonzero(is_same)
    differs = _differs(data, starts[chosen], output, (origin + added)[chosen], width[chosen])
    is_same[chosen[differs]] = False
    return Spelling(is_same, is_same & added)


def _differs(data: bytes, places: I64, output: Any, origins: I64, counts: I64) -> I64:
    """List the runs of bytes, `counts` of them each, that differ between text and output."""
    run = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(run)) - (np.cumsum(counts) - counts)[run]
    text = np.frombuffer(data + b"\0", np.uint8)
    differs: I64 = run[text[places[run] + within] != output[origins[run] + within]]
    return differs


def spans_from_offsets(
    data: bytes, offsets: I64, written: bytes, lengths: I64, owns_space: Bools
) -> tuple[I64, I64] | None:
    """Find where tokens lie in `data`, from a tokenizer's offsets.

    Args:
        data: The text.
        offsets: (T, 2) first character and character after the last, in the original text.
        written: The bytes of all tokens, one after the other.
        lengths: (T,) how many of them each token has.
        owns_space: (T,) whether uncovered white space before the token belongs to it.

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
    starts, ends = _laid_out(data, written, origin, lengths, (low, high), (starts, ends))
    starts = _with_white_space(data, starts, ends, owns_space)
    if (ends < starts).any() or (starts[1:] < ends[:-1]).any():
        return None
    return starts, ends


def _with_white_space(data: bytes, starts: I64, ends: I64, owns_space: Bools) -> I64:
    """Move starts to before the white space in front of them that lies behind the token before."""
    before = np.append(0, ends[:-1])
    holes = np.flatnonzero((starts > before) & owns_space)
    if not len(holes):
        return starts
    others = np.append(0, np.cumsum(~np.isin(np.frombuffer(data, np.uint8), _ASCII_SPACES)))
    is_space = others[starts[holes]] == others[before[holes]]
    moved = starts.copy()
    moved[holes[is_space]] = before[holes[is_space]]
    for i in holes[~is_space]:  # white space beyond ASCII, or behind what a normaliser has dropped
        moved[i] = before[i] + len(without_space_behind(data[before[i] : starts[i]]))
    return moved


def without_space_behind(text: bytes) -> bytes:
    """Remove white space of any kind from the end of UTF-8 text."""
    return text.decode("utf-8", "surrogateescape").rstrip().encode("utf-8", "surrogateescape")


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

    A token that is then empty and shares its character with the next one, but not with one before,
    has no width: it is the mark alone (`▁`), put in front of a word.
    """
    text = np.frombuffer(data + b"\0", np.uint8)
    output = np.frombuffer(written + b"\0", np.uint8)
    added = (lengths > 0) & (output[origin] == _SPACE) & (text[low] != _SPACE)
    origin, lengths = origin + added, lengths - added
    shared = np.append(low[1:] == low[:-1], False)
    shared &= np.append(True, high[:-1] <= low[1:])
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
    output = np.frombuffer(written + b"\0", np.uint8)
    differs = _differs(data, place[chosen], output, origin[chosen], lengths[chosen])
    exact[run[chosen[differs]]] = False

    sure = exact[run]
    return np.where(sure, place, starts), np.where(sure, place + lengths, ends)


def _character_places(data: bytes) -> I64:
    """Find the first byte of every character of UTF-8 text, and the end of the text."""
    units = np.frombuffer(data, np.uint8)
    return np.append(np.flatnonzero((units & 0xC0) != 0x80), len(data)).astype(np.int64)
