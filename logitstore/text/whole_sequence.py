"""Read a sequence of a store again as tokens, and find the one that each record is of.

A store has the text of a sequence as the teacher read it, and the tokens of its records, but not
the tokens between them. The teacher's tokenizer is run on the text once more. Three things are
taken from elsewhere, since the text does not say them:

    the end        the token behind the text is that of the last record, if it has one there
    a window       begins inside a row: it is tokenised behind the text of the window before it,
                   and has the BOS in front that the row has
    other tokens   a text may be written in several ways (ids of a server or of the user's own). If
                   its tokens are not the records', these are taken, and the text between them is
                   tokenised alone

Shape legend: T = tokens of the sequence, n = records.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.records import Segment, SequenceText, TokenRecords
from logitstore.text.around_records import around_records
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation
from logitstore.text.token_ids import begins_bare
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer

#: Characters of a window that may be context of the window before, and are looked for there.
_MOST_SHARED = 1 << 16
#: Characters of a text in which its BOS is.
_OPENING = 256


class WholeSequence(NamedTuple):
    """The tokens of a sequence, and which of them have records.

    Attributes:
        token_ids: (T,) as the teacher read them.
        positions: (n,) the token of each record, ascending.
        agrees: Whether the tokenizer, run on the text, gives the records' tokens in their places.
    """

    token_ids: I64
    positions: I64
    agrees: bool


class Around(NamedTuple):
    """What else of a row says how one of its windows was read.

    Attributes:
        before: The line of the window before; None for a first one.
        head: The tokens that every window of the row begins with.
    """

    before: SequenceText | None
    head: I64


def whole_sequence(
    line: SequenceText,
    records: TokenRecords,
    tokenizer: ByteTokenizer,
    rendering: Mapping[str, Any],
    around: Around | None = None,
) -> WholeSequence:
    """Find the tokens of a sequence, and the places of its records among them.

    Args:
        line: Its text.
        records: Its records, at the teacher's own tokens; not none.
        tokenizer: The teacher's, with all the ends of the store's spec.
        rendering: The store's (`StoreSpec.rendering`).
        around: Of a window (`split`): what lies around it.
    """
    for each in (line, line._replace(segments=_with_empty_turns(line.segments))):
        read = (
            _of_window(each, tokenizer, around) if around else _of_row(each, tokenizer, rendering)
        )
        for tokens in read:
            placed = _placed(tokens, line, records)
            if placed is not None:
                return placed
    head = around.head if around else _prefix(line, tokenizer, rendering)
    ids, positions = around_records(line, records, tokenizer, head)
    return WholeSequence(ids, positions, False)


def head_of_row(
    first: SequenceText,
    tokenizer: ByteTokenizer,
    rendering: Mapping[str, Any],
    template: ChatTemplate | None = None,
) -> I64:
    """Find the tokens that every window of a row begins with: BOS or none, rarely more.

    Args:
        first: The line of the row's first window, which may itself begin inside the row.
        tokenizer, rendering: As for :func:`whole_sequence`.
        template: Of conversations: the one that the store has beside the tokenizer.
    """
    own = _own_head(_encoded(_opening(first.segments), tokenizer), tokenizer)
    if len(own) or rendering.get("kind") != "conversation":
        return own if len(own) else _prefix(first, tokenizer, rendering)
    probe = Conversation.choose([{"role": "user", "content": "a"}], "last", first=1)
    if template is None:
        return tokenizer.prefix  # what most templates write
    try:
        text = template.prompt(probe, "a probe")
    except InputError:
        text = ""
    return _own_head(_encoded([Segment(text, False)], tokenizer), tokenizer)


def _opening(segments: Sequence[Segment]) -> list[Segment]:
    return [segment._replace(text=segment.text[:_OPENING]) for segment in segments[:2]]


def _own_head(tokens: TokenizedText, tokenizer: ByteTokenizer) -> I64:
    """Take the head that a text has of its own, as `Renderer.prefix_length` counts it."""
    ids, prefix = tokens.token_ids, tokenizer.prefix
    if len(prefix) and ids[: len(prefix)].tolist() == prefix.tolist():
        return prefix
    return ids[: int(bool(len(ids)) and ids[0] == tokenizer.bos_token_id)]


def _prefix(line: SequenceText, tokenizer: ByteTokenizer, rendering: Mapping[str, Any]) -> I64:
    """Return what the tokenizer itself puts in front of a row: a chat template writes its own."""
    kind = rendering.get("kind")
    has_prefix = kind != "conversation" and not (kind == "tokens" and begins_bare(line.segments))
    return tokenizer.prefix if has_prefix else tokenizer.prefix[:0]


def _encoded(
    segments: Sequence[Segment],
    tokenizer: ByteTokenizer,
    head: I64 | None = None,
    add_eos: bool = False,
) -> TokenizedText:
    """Tokenise a text behind a head, which is no part of it."""
    head = tokenizer.prefix[:0] if head is None else head
    has_prefix = bool(len(head)) and np.array_equal(head, tokenizer.prefix)
    if len(head) and not has_prefix:
        spelt = b"".join(tokenizer.written(head)).decode()
        segments = (Segment(spelt, False), *segments)
    return tokenizer.encode(segments, add_eos=add_eos, add_prefix=has_prefix)


def _of_row(
    line: SequenceText, tokenizer: ByteTokenizer, rendering: Mapping[str, Any]
) -> Iterator[TokenizedText]:
    """Yield what a row may have been: with the EOS of its kind, and with that of its records."""
    prefix = _prefix(line, tokenizer, rendering)
    is_ended = bool(rendering.get("add_eos")) and line.status in ("ok", "truncated")
    for add_eos in (True, False)[not is_ended :]:
        tokens = _encoded(line.segments, tokenizer, prefix, add_eos)
        limit = rendering.get("max_length")
        yield tokens.cut(limit if isinstance(limit, int) and limit > 0 else None)


def _of_window(
    line: SequenceText, tokenizer: ByteTokenizer, around: Around
) -> Iterator[TokenizedText]:
    """Yield what a window may have been: a piece of a longer text, or the head of one."""
    behind = None if around.before is None else _behind(line, around.before, tokenizer)
    if behind is not None:
        yield _with_head(behind, around.head)
    alone = _encoded(line.segments, tokenizer)
    has_head = len(_own_head(alone, tokenizer)) or not len(around.head)
    yield alone if has_head else _encoded(line.segments, tokenizer, around.head)


def _behind(
    line: SequenceText, before: SequenceText, tokenizer: ByteTokenizer
) -> TokenizedText | None:
    """Tokenise a window behind the one before it; None where no token begins with the window."""
    earlier = "".join(segment.text for segment in before.segments)
    context = earlier[: len(earlier) - _shared(earlier, line.segments)]
    begin = len(context.encode())
    tokens = _encoded((Segment(context, False), *line.segments), tokenizer)
    first = int(np.searchsorted(tokens.text_starts, begin))
    is_inside = 0 < first < len(tokens.token_ids)
    if not is_inside or tokens.text_ends[first - 1] > begin:
        return None
    return tokens.take(slice(first, None))


def _shared(earlier: str, segments: Sequence[Segment]) -> int:
    """Count the characters at a window's head that are the end of the window before."""
    context = itertools.takewhile(lambda segment: not segment.supervised, segments)
    lead = "".join(segment.text for segment in context)
    most = min(len(lead), len(earlier), _MOST_SHARED)
    return next((n for n in range(most, 0, -1) if earlier.endswith(lead[:n])), 0)


def _with_head(tokens: TokenizedText, head: I64) -> TokenizedText:
    """Put tokens without records or bytes before a text."""
    count = len(head)
    chosen = np.maximum(np.arange(-count, len(tokens.token_ids)), 0)
    has_record = tokens.has_record[chosen]
    has_record[:count] = False
    taken = tokens.take(chosen, has_record)
    return replace(taken, token_ids=np.concatenate([head, tokens.token_ids]))


def _with_empty_turns(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Put an empty turn wherever there may have been one, since a window has none of its row's.

    Of tokens that end a turn there, the records say which ended one (:func:`_placed`).
    """
    made = [*segments[:1]]
    for before, after in itertools.pairwise(segments):
        made += [] if before.supervised or after.supervised else [Segment("", True)]
        made.append(after)
    return tuple(made)


def _placed(
    tokens: TokenizedText, line: SequenceText, records: TokenRecords
) -> WholeSequence | None:
    """Find the records among tokens that may have some; None where not all are there."""
    may = np.flatnonzero(tokens.has_record)
    ids = tokens.token_ids
    found = _spans(
        ids[may], tokens.byte_starts[may] + line.supervised_start, tokens.byte_lengths[may]
    )
    wanted = _spans(records.token_ids, records.byte_starts, records.byte_lengths)
    end = line.supervised_start + len(line.supervised_bytes)
    token, start, length = wanted[-1]
    ends_supervised = line.segments[-1].supervised and len(ids) > 0
    if wanted[:-1] == found and ends_supervised and (start, length) == (end, 0):
        return WholeSequence(np.append(ids, token), np.append(may, len(ids)), True)
    chosen = _chosen(found, wanted)
    return None if chosen is None else WholeSequence(ids, may[chosen], True)


_Span = tuple[int, int, int]


def _spans(ids: Any, starts: Any, lengths: Any) -> list[_Span]:
    return list(zip(ids.tolist(), starts.tolist(), lengths.tolist(), strict=True))


def _chosen(found: Sequence[_Span], wanted: Sequence[_Span]) -> list[int] | None:
    """Find what is wanted in what was found, where there may be more ends of empty turns.

    From the end: of two ends at one place, the first was in the window before.
    """
    chosen, left = [], len(wanted)
    for i in range(len(found) - 1, -1, -1):
        if left and found[i] == wanted[left - 1]:
            left -= 1
            chosen.append(i)
        elif found[i][2]:
            return None
    return None if left else chosen[::-1]
