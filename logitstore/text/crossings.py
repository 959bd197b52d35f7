"""Find where tokens of a store truly begin and end, from what they write.

A store has the supervised bytes of each token, so a token that crosses from context into supervised
text seems to begin where that text does. What it writes tells the rest: its bytes are found in the
text around its supervised ones. Most tokens write just their supervised bytes, and only the others
are looked at one by one.

A chat template writes the same in front of every answer, and each model has a template of its own.
Where that ends in a space, and a token writes it, the space is as good as added by the tokenizer:
the answer itself is asked for, whichever template asks.

Shape legend: n = tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from logitstore.format.numpy_types import I64, Bools
from logitstore.records import Segment
from logitstore.text.supervised_bytes import SupervisedBytes
from logitstore.text.token_spans import Spelling, spelling, without_space_behind
from logitstore.text.tokenizer import ByteTokenizer


class Crossings(NamedTuple):
    """What tokens write beyond their supervised bytes. Nothing is claimed of one that fits nowhere.

    Attributes:
        lengths: (n,) bytes in the stretch of supervised text that the token begins in.
        heads: (n,) bytes in the context before that.
        tails: (n,) bytes behind the stretch.
        has_added_space: (n,) it writes one space in front that the text does not have.
        is_verbatim: (n,) what it writes, less an added space, is the text that it covers.
    """

    lengths: I64
    heads: I64
    tails: I64
    has_added_space: Bools
    is_verbatim: Bools


class _Fit(NamedTuple):
    head: int = 0
    tail: int = 0
    has_added_space: bool = False
    is_verbatim: bool = False


def find_crossings(
    segments: Sequence[Segment],
    tokenizer: ByteTokenizer,
    token_ids: I64,
    starts: I64,
    lengths: I64,
    is_eos: Bools,
    *,
    is_conversation: bool = False,
) -> Crossings:
    """Compare what tokens write with the text at the places that a store has for them.

    Args:
        segments: The text.
        tokenizer: That of the tokens.
        token_ids: (n,) the supervised tokens, in order.
        starts: (n,) supervised bytes before each.
        lengths: (n,) supervised bytes of each.
        is_eos: (n,) whether it is an end, which stands for no bytes.
        is_conversation: Whether a chat template wrote the context.
    """
    supervised = "".join(s.text for s in segments if s.supervised).encode()
    is_known = ~is_eos & (token_ids < tokenizer.size)
    written = tokenizer.written(np.where(is_known, token_ids, 0))
    for i in np.flatnonzero(~is_known).tolist():
        written[i] = b""
    spelt = _spelling(supervised, starts, lengths, written)
    heads, tails = np.zeros_like(starts), np.zeros_like(starts)
    within = lengths.copy()
    has_added_space, is_verbatim = spelt.has_added_space.copy(), spelt.is_verbatim | is_eos
    is_odd = ~is_eos & (has_added_space | ~is_verbatim)
    if not supervised or not (is_odd.any() or tokenizer.joins_spaces):
        return Crossings(within, heads, tails, has_added_space, is_verbatim)
    text = _Text(segments, tokenizer, is_conversation)
    if tokenizer.joins_spaces:  # ` the` may stand for more white space than its own
        is_odd |= ~is_eos & text.supervised.begins_stretch(starts)
    for i in np.flatnonzero(is_odd).tolist():
        token = int(token_ids[i]), written[i]
        within[i], fit = text.fit(*token, int(starts[i]), int(lengths[i]))
        heads[i], tails[i], has_added_space[i], is_verbatim[i] = fit
    return Crossings(within, heads, tails, has_added_space, is_verbatim)


def _spelling(data: bytes, starts: I64, lengths: I64, written: Sequence[bytes]) -> Spelling:
    """Compare what tokens write with their supervised bytes alone."""
    joined = b"".join(written)
    sizes = np.fromiter(map(len, written), np.int64, len(written))
    if np.array_equal(sizes, lengths) and np.array_equal(starts[1:], (starts + sizes)[:-1]):
        first = int(starts[0]) if len(starts) else 0
        if joined == data[first : first + len(joined)]:
            every = np.ones(len(written), np.bool_)
            return Spelling(every, ~every)
    return spelling(data, starts, starts + lengths, joined, sizes)


class _Text:
    """A text in which tokens are looked for."""

    def __init__(
        self, segments: Sequence[Segment], tokenizer: ByteTokenizer, is_conversation: bool
    ) -> None:
        self._data = "".join(segment.text for segment in segments).encode()
        self.supervised = SupervisedBytes(segments)
        self._tokenizer, self._is_conversation = tokenizer, is_conversation

    def fit(self, token_id: int, written: bytes, first: int, length: int) -> tuple[int, _Fit]:
        """Find what a token covers, given its supervised bytes.

        Returns:
            Its bytes in the stretch that it begins in; what it covers beyond.
        """
        if not length:  # perhaps a mark in front of a word (`▁`)
            return 0, _Fit(0, 0, written == b" ", written in (b"", b" "))
        ends = np.array([first, first + length - 1])
        (place, last), (start, _), (stop, stop_of_last) = self.supervised.places(ends)
        low, _ = self.supervised.context_of(int(start), int(stop))
        _, high = self.supervised.context_of(int(start), int(stop_of_last))
        before = self._data[low:place] if place == start else b""
        core = self._data[place : last + 1]
        behind = self._data[last + 1 : high] if last + 1 == stop_of_last else b""
        tokenizer = self._tokenizer
        owns_space = (
            tokenizer.joins_spaces
            and bool(tokenizer.is_text[token_id] or token_id == tokenizer.unk_token_id)
            and (written[:1] == b" " or not tokenizer.marks_spaces)
        )
        fit = (_fit_behind_spaces if owns_space else _fit)(written, before, core, behind)
        head = before[len(before) - fit.head :]
        if self._is_conversation and is_space_of_template(written, head, tokenizer):
            covered = core + behind[: fit.tail]
            fit = _Fit(0, fit.tail, True, written[1:] == covered)
        within = min(length, int(stop - place))
        return within, fit._replace(tail=fit.tail + int(last) + 1 - int(place) - within)


def is_space_of_template(written: bytes, head: bytes, tokenizer: ByteTokenizer) -> bool:
    """Tell whether all that a token writes of the context before it is one space."""
    is_space = head == b" " or (tokenizer.joins_spaces and _without_space(head) == b"")
    return bool(head) and written[:1] == b" " and is_space


def _found(written: bytes, before: bytes, core: bytes, behind: bytes) -> tuple[int, int] | None:
    """Find `written` around `core`: (bytes before, bytes behind); None where it does not fit."""
    more = len(written) - len(core)
    around = before + core + behind
    for head in range(min(more, len(before)), -1, -1):
        place = len(before) - head
        if more - head <= len(behind) and around[place : place + len(written)] == written:
            return head, more - head
    return None


def _fit(written: bytes, before: bytes, core: bytes, behind: bytes) -> _Fit:
    """Fit a token of a tokenizer that keeps white space as it is."""
    if found := _found(written, before, core, behind):
        return _Fit(*found, False, True)
    has_space = written[:1] == b" "
    if has_space and (found := _found(written[1:], before, core, behind)):
        head, tail = found
        begun = before[: len(before) - head].decode("utf-8", "replace")
        if begun[-1:].isspace():  # of another kind, which a normaliser has made a plain one
            return _Fit(head + len(begun[-1].encode()), tail)
        return _Fit(head, tail, True, True)
    # Its word is changed, but where it begins with a space and the context ends with one, that is
    # its own.
    is_word = _without_space(core) == core
    return _Fit(head=int(has_space and before[-1:] == b" " and is_word))


def _fit_behind_spaces(written: bytes, before: bytes, core: bytes, behind: bytes) -> _Fit:
    """Fit a token that has all white space before it, whatever that is, as one space or none."""
    word = _without_space(core)
    begins_before = word == core
    rest = behind if word else _without_space(behind)
    around = before if begins_before else b""
    head, tail = _found(written.removeprefix(b" "), around, word, rest) or (0, 0)
    tail += len(behind) - len(rest)
    begun = before[: len(before) - head]
    head += len(begun) - len(without_space_behind(begun))
    covered = (before + core + behind)[len(before) - head : len(before) + len(core) + tail]
    has_added_space = written == b" " + covered
    return _Fit(head, tail, has_added_space, has_added_space or written == covered)


def _without_space(text: bytes) -> bytes:
    return text.decode("utf-8", "surrogateescape").lstrip().encode("utf-8", "surrogateescape")
