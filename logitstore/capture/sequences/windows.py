"""Cut rows that are longer than the teacher reads into windows, truncate them, or leave them out.

A row is tokenised once, whole. A window is a slice of those tokens behind the tokenizer's own
prefix (BOS), so every token is the one it would be in the whole row:

    row      t0 t1 t2 t3 t4 t5 t6 t7 t8 EOS
    part 0   BOS t0 t1 t2 t3 t4                       records of t0 … t4
    part 1       BOS (t3 t4) t5 t6 t7                 records of t5 … t7, two tokens of context
    part 2               BOS (t6 t7) t8 EOS           records of t8 and EOS

Every supervised token has its record in exactly one window, and the supervised text of the parts,
put together, is the row's. A window begins and ends between characters, never inside one, and never
parts an end-of-turn event from the text it ends. The first window of a long prompt keeps as much of
the prompt as leaves half of itself for new tokens.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from logitstore.capture.checked import OVERFLOWS
from logitstore.capture.sequences.questions import Questions
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.records import Segment, SequenceText
from logitstore.text.tokenized_text import TokenizedText

#: By default an eighth of a window is context: 14 % more work for the teacher.
_STRIDE_PART = 8


@dataclass(frozen=True)
class TeacherSequence:
    """Holds a row, or a window of one, rendered and tokenised.

    Attributes:
        line: Its text, as the store keeps it.
        text: Its tokens.
        prefix_length: Tokens at the head of a whole row that every window of it begins with.
        text_offset: Byte of the row's text where the text of the line begins.
        questions: What a student's boundaries ask of the teacher here; None: none does.
    """

    line: SequenceText
    text: TokenizedText
    prefix_length: int = 0
    text_offset: int = 0
    questions: Questions | None = None

    @property
    def records(self) -> int:
        return int(self.text.has_record.sum())

    @property
    def length(self) -> int:
        return len(self.text.token_ids)


@dataclass(frozen=True)
class Limits:
    """Says how long a sequence may be, and what becomes of a longer row.

    Attributes:
        max_length: Tokens of a sequence at most, with BOS and EOS; None: no limit.
        overflow: One of `OVERFLOWS`.
        stride: Tokens of context before the new ones of a window.
        prefix_length: Tokens that the tokenizer puts in front of every text.
    """

    max_length: int | None
    overflow: str
    stride: int
    prefix_length: int


def limits_of(
    max_length: int | None, overflow: str, stride: int | None, prefix_length: int
) -> Limits:
    """Check the limits asked for, and fill in defaults.

    Raises:
        InputError: An unknown overflow, or a stride that leaves a window too little.
    """
    if overflow not in OVERFLOWS:
        raise InputError(f"--overflow is {overflow}, expected {', '.join(OVERFLOWS)}.")
    if stride is not None and overflow != "split":
        raise InputError(
            f"--stride is {stride}, but with --overflow {overflow} no row is cut into windows. "
            "Leave one of the two out."
        )
    if max_length is None:
        return Limits(None, overflow, stride or 0, prefix_length)
    most = max(max_length - prefix_length, 0) // 2
    if stride is not None and not 0 <= stride <= most:
        raise InputError(
            f"--stride is {stride}, expected 0 to {most}: at most half of a window of {max_length} "
            "tokens may be context."
        )
    default = min(max_length // _STRIDE_PART, most)
    return Limits(max_length, overflow, default if stride is None else stride, prefix_length)


def rendering_of(limits: Limits) -> dict[str, object]:
    """Return the limits that decide a store's records, for its spec.

    Nothing for `truncate`: stores from before there were windows were truncated, and so keep their
    bytes and can be resumed.
    """
    if limits.max_length is None or limits.overflow == "truncate":
        return {}
    strides = {"stride": limits.stride} if limits.overflow == "split" else {}
    return {"overflow": limits.overflow, **strides}


def sequences_of_row(whole: TeacherSequence, limits: Limits) -> list[TeacherSequence]:
    """Cut a row into sequences: itself if it fits, else as `limits.overflow` says."""
    if limits.max_length is None or whole.length <= limits.max_length or not whole.records:
        return [whole]
    if limits.overflow == "truncate":
        return [_truncated(whole, limits.max_length)]
    if limits.overflow == "skip":
        return [_too_long(whole)]
    return _split(whole, limits) or [_too_long(whole)]


def _truncated(whole: TeacherSequence, length: int) -> TeacherSequence:
    kept = _taken(whole.text, np.arange(length), 0)
    status = "truncated" if kept.has_record.any() else "no_supervised_text"
    return TeacherSequence(whole.line._replace(status=status), replace(kept, status=status))


def _too_long(whole: TeacherSequence) -> TeacherSequence:
    none = _taken(whole.text, np.zeros(0, np.int64), 0)
    return TeacherSequence(whole.line._replace(status="too_long"), replace(none, status="too_long"))


def _split(whole: TeacherSequence, limits: Limits) -> list[TeacherSequence]:
    """Cut a row into windows; none where one character has more tokens than fit in a window."""
    text, row = whole.text, _RowText(whole.line.segments)
    planned = _plan(text, row.data, limits)
    prefix, count = limits.prefix_length, len(text.token_ids)
    parts = []
    for part, (context, first, stop) in enumerate(planned):
        began, new, ended = (
            0 if i == prefix else len(row.data) if i == count else int(text.text_starts[i])
            for i in (context, first, stop)
        )
        context_segments = row.cut(began, new, is_context=True)
        line = whole.line._replace(
            part=part,
            status="split",
            segments=(*context_segments, *row.cut(new, ended)),
            supervised_start=row.supervised_before(new),
        )
        tokens = np.concatenate([np.arange(prefix), np.arange(context, stop)])
        kept = replace(_taken(text, tokens, first), status="split")
        parts.append(TeacherSequence(line, kept, text_offset=began))
    return parts


def _plan(text: TokenizedText, data: bytes, limits: Limits) -> list[tuple[int, int, int]]:
    """Plan the windows: (first token of the context, first new token, token after the last) each.

    New tokens with a record get it in this window. They begin where the window before stopped, or
    later, where there is only context in between.
    """
    assert limits.max_length is not None
    room, prefix, count = (
        limits.max_length - limits.prefix_length,
        limits.prefix_length,
        len(text.token_ids),
    )
    wanted = np.flatnonzero(text.has_record)
    cuts = _places_to_cut(text, data, prefix)
    windows: list[tuple[int, int, int]] = []
    stopped = prefix
    while len(left := wanted[np.searchsorted(wanted, stopped) :]):
        new = int(left[0])
        context_tokens = limits.stride
        if not windows:
            context_tokens = max(limits.stride, room - min(count - new, (room + 1) // 2))
        begin = _begin(cuts, new, context_tokens, prefix)
        stop = int(cuts[np.searchsorted(cuts, begin + room, side="right") - 1])
        if stop <= new:
            return []
        windows.append((begin, max(begin, stopped) if windows else begin, stop))
        stopped = stop
    return windows


def _begin(cuts: I64, new: int, context_tokens: int, prefix: int) -> int:
    """Choose a window's first token: at most `context_tokens` before `new`, at a place to cut.

    Without BOS nothing would predict the first token of a window, so one of context is needed.
    """
    latest = new if prefix else max(new - 1, 0)
    earliest = max(min(new - context_tokens, latest), prefix)
    place = int(np.searchsorted(cuts, earliest))
    return int(cuts[place] if cuts[place] <= latest else cuts[max(place - 1, 0)])


def _places_to_cut(text: TokenizedText, data: bytes, prefix: int) -> I64:
    """List tokens before which a row may be cut: the first, those that begin a character, the end.

    Not before a token without supervised bytes (EOS, end of a turn), which belongs to what it ends,
    nor before white space in front of that.
    """
    units = np.frombuffer(data + b".", np.uint8)
    at_character = (units[text.text_starts] & 0xC0) != 0x80
    is_event = text.has_record & (text.byte_lengths == 0)
    inside = at_character & ~is_event
    for event in np.flatnonzero(is_event):
        before = event - 1
        while before >= 0 and not text.has_record[before]:
            if not data[text.text_starts[before] : text.text_ends[before]].isspace():
                break
            inside[before] = False
            before -= 1
    inside[: prefix + 1] = False
    return np.concatenate([[prefix], np.flatnonzero(inside), [len(text.token_ids)]])


def _taken(text: TokenizedText, tokens: I64, first_new: int) -> TokenizedText:
    """Take some of the tokens; those before `first_new` are context, without records."""
    has_record = text.has_record[tokens] & (tokens >= first_new)
    return text.take(tokens, has_record)


class _RowText:
    """Holds the UTF-8 bytes of a row, and cuts them between any two characters."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = [s for s in segments if s.text]
        self._pieces = [s.text.encode() for s in self._segments]
        self.data = b"".join(self._pieces)
        sizes = [len(piece) for piece in self._pieces]
        supervised = [
            len(p) * s.supervised for p, s in zip(self._pieces, self._segments, strict=True)
        ]
        self._bounds = list(accumulate(sizes, initial=0))
        self._supervised = list(accumulate(supervised, initial=0))

    def cut(self, start: int, stop: int, *, is_context: bool = False) -> list[Segment]:
        """Return the segments between two bytes; all as context if asked."""
        segments = []
        i = max(bisect_right(self._bounds, start) - 1, 0)
        while i < len(self._pieces) and self._bounds[i] < stop:
            low, high = (max(place - self._bounds[i], 0) for place in (start, stop))
            if piece := self._pieces[i][low:high]:
                segment = self._segments[i]
                flag = segment.supervised and not is_context
                segments.append(segment._replace(text=piece.decode(), supervised=flag))
            i += 1
        return segments

    def supervised_before(self, place: int) -> int:
        """Count the supervised bytes before a byte."""
        i = min(bisect_right(self._bounds, place) - 1, len(self._pieces) - 1)
        inside = (place - self._bounds[i]) * self._segments[i].supervised
        return self._supervised[i] + inside
