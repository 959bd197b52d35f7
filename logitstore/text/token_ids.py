"""Read rows that come as token ids of the teacher: their text, and where each token lies in it.

The ids are taken as they are: no BOS, EOS or template is added. Their bytes, one after the other,
are the text. Special tokens, which a student of another vocabulary could not read, are segments
with a role, and :func:`for_student` replaces them by that student's own tokens:

    BARE    the row lacks the BOS that this tokenizer would begin a text with (a later chunk of one)
    BEGIN   the BOS token, where the tokenizer does not put it there by itself
    END     an EOS-like token; after supervised text it is an event, as in any other row
    MARK    any other special token, kept as it is spelt

Special tokens are context. A character is supervised if one of its bytes is. Bytes that form no
character (a chunk may begin or end inside one) are left out of the text, and their tokens have no
record.

Shape legend: T = tokens, B = bytes that they write, C = characters.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64, Bools
from logitstore.records import Segment
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer

BARE, BEGIN, END, MARK = "bare", "begin", "end", "mark"
_ROLES = (None, BARE, BEGIN, END, MARK)


class TokenRow(NamedTuple):
    """A row of token ids, and which of them are to be trained on.

    Attributes:
        token_ids: (T,) ids of the teacher's tokenizer.
        is_wanted: (T,) True for tokens to train on.
    """

    token_ids: I64
    is_wanted: Bools


def read_tokens(
    row: TokenRow, tokenizer: ByteTokenizer, where: str
) -> tuple[tuple[Segment, ...], TokenizedText]:
    """Turn token ids into the text that they write, and find the place of each token in it.

    Args:
        row: The token ids.
        tokenizer: The teacher's.
        where: Names the row in messages.

    Returns:
        The text as segments, and the tokens.

    Raises:
        InputError: An id that the tokenizer does not have.
    """
    ids = row.token_ids
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.size:
        raise InputError(
            f"{where}: token ids reach from {ids.min()} to {ids.max()}, but the teacher's "
            f"tokenizer has 0 to {tokenizer.size - 1}. Tokenise the dataset with it, or give text."
        )
    p = _prefix_length(ids, tokenizer)
    written = tokenizer.written(ids)
    written[:p] = [b""] * p
    roles = _roles_of(ids, tokenizer, p)
    is_special = np.isin(roles, [_ROLES.index(role) for role in (BEGIN, END, MARK)])
    added = _added_space(written, is_special, tokenizer, p)
    pieces = _Pieces(written, added)
    supervised_B = pieces.over_characters((row.is_wanted & ~is_special)[pieces.token_B])
    text_starts, text_ends = pieces.spans(np.ones_like(supervised_B))
    starts, ends = pieces.spans(supervised_B)
    wants_event = row.is_wanted & (roles == _ROLES.index(END))
    has_record = (row.is_wanted & ~is_special & ~pieces.is_broken) | wants_event
    has_record[: max(p, 1)] = False
    text = TokenizedText(
        token_ids=ids,
        has_record=has_record,
        byte_starts=np.where(has_record, starts, 0),
        byte_lengths=np.where(has_record & ~wants_event, ends - starts, 0),
        is_eos=wants_event,
        text_starts=text_starts,
        text_ends=text_ends,
        heads=np.zeros(len(ids), np.int64),  # supervised text begins and ends with a token
        tails=np.zeros(len(ids), np.int64),
        has_added_space=added > 0,
        is_verbatim=np.ones(len(ids), np.bool_),
        status=_status(len(ids), has_record),
    )
    events = np.flatnonzero(wants_event)
    return _segments(pieces, supervised_B, roles, text_starts[events]), text


def for_student(segments: Sequence[Segment], student: ByteTokenizer) -> tuple[Segment, ...]:
    """Replace the teacher's BOS and EOS in a text by the student's own.

    A student whose vocabulary has the teacher's token keeps it. One that puts BOS in front of every
    text by itself needs no other.
    """
    token_of = {BEGIN: student.bos_token, END: student.eos_token}
    replaced = []
    for segment in segments:
        text = segment.text
        if segment.role == BEGIN and student.prefix_length:
            text = ""
        elif segment.role in token_of and not student.is_special(text):
            text = token_of[segment.role] or ""
        replaced.append(segment._replace(text=text))
    return tuple(replaced)


def begins_bare(segments: Sequence[Segment]) -> bool:
    """Tell whether a row lacks the BOS with which its tokenizer would have begun the text."""
    return any(segment.role == BARE for segment in segments)


def check_spelling(tokenizer: ByteTokenizer) -> None:
    """Reject tokenizers whose tokens do not spell a text.

    Raises:
        InputError: It is such a one, as WordPiece, whose tokens do not say where white space was.
    """
    probe = "a b, a,b"
    ids = tokenizer.encode([Segment(probe, True)], add_eos=False, add_prefix=False).token_ids
    if b"".join(tokenizer.written(ids)).removeprefix(b" ") != probe.encode():
        raise InputError(
            f"{tokenizer.name}: rows of input_ids need a tokenizer whose tokens spell the text, "
            "and this one's leave out white space or change letters. Give the rows as text."
        )


def _prefix_length(ids: I64, tokenizer: ByteTokenizer) -> int:
    """Count the tokens at the head of the row that the tokenizer itself would have put there."""
    p = len(tokenizer.prefix)
    return p if len(ids) >= p and bool((ids[:p] == tokenizer.prefix).all()) else 0


def _roles_of(ids: I64, tokenizer: ByteTokenizer, p: int) -> I64:
    """Find the role of each token's segment: (T,) its number in `_ROLES`."""
    of_text = BARE if len(tokenizer.prefix) > p else None
    roles = np.where(tokenizer.is_text[ids], _ROLES.index(of_text), _ROLES.index(MARK))
    roles[np.isin(ids, np.array(tokenizer.eos_ids, np.int64))] = _ROLES.index(END)
    if tokenizer.bos_token_id is not None and p == 0:
        roles[:1][ids[:1] == tokenizer.bos_token_id] = _ROLES.index(BEGIN)
    return roles


def _added_space(
    written: Sequence[bytes], is_special: Bools, tokenizer: ByteTokenizer, p: int
) -> I64:
    """Count the bytes, 0 or 1, at the head of each token that the tokenizer added: (T,)."""
    leads = np.array([text[:1] == b" " for text in written], np.bool_)
    follows_start = np.zeros(len(written), np.bool_)
    follows_start[p : p + 1] = tokenizer.adds_space
    if tokenizer.adds_space_after_special:
        follows_start[1:] |= is_special[:-1]
    return (leads & follows_start & ~is_special).astype(np.int64)


class _Pieces:
    """The bytes of tokens, one after the other, without those that form no character.

    Attributes:
        data: (B,) the bytes that are text.
        token_B: (B,) the token of each byte.
        is_broken: (T,) tokens with bytes that form no character.
    """

    def __init__(self, written: Sequence[bytes], skipped: I64) -> None:
        pieces = [text[skip:] for text, skip in zip(written, skipped, strict=True)]
        whole = b"".join(pieces)
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        token = np.repeat(np.arange(len(pieces)), lengths)
        is_text = _decodable(whole)
        self.is_broken = np.bincount(token[~is_text], minlength=len(pieces)) > 0
        self.token_B: I64 = token[is_text]
        self.data = bytes(np.frombuffer(whole, np.uint8)[is_text])
        self._count = len(pieces)
        units = np.frombuffer(self.data, np.uint8)
        self.character_B = np.cumsum((units & 0xC0) != 0x80) - 1

    def over_characters(self, flags_B: Bools) -> Bools:
        """Set a flag in every byte of a character if it is set in one of them: (B,)."""
        count = int(self.character_B[-1]) + 1 if len(self.data) else 0
        is_counted: Bools = np.bincount(self.character_B[flags_B], minlength=count) > 0
        spread_B: Bools = is_counted[self.character_B]
        return spread_B

    def spans(self, counted_B: Bools) -> tuple[I64, I64]:
        """Count the flagged bytes before each token, and up to its end: (T,) each."""
        per_token = np.bincount(self.token_B[counted_B], minlength=self._count)
        ends = np.cumsum(per_token)
        return ends - per_token, ends


def _decodable(data: bytes) -> Bools:
    """Find the bytes that are part of a character: (B,)."""
    is_text, done = np.ones(len(data), np.bool_), 0
    while done < len(data):
        try:
            data[done:].decode()
            break
        except UnicodeDecodeError as error:
            is_text[done + error.start : done + error.end] = False
            done += error.end
    return is_text


def _segments(pieces: _Pieces, supervised_B: Bools, roles: I64, events: I64) -> tuple[Segment, ...]:
    """Cut the text into runs of one kind; each special token is a segment, to be replaced alone.

    An event without supervised text before it ends an empty turn: an empty segment is added for it.
    """
    role_B = roles[pieces.token_B]
    is_plain = np.isin(role_B, [_ROLES.index(BARE), 0])
    key = np.where(is_plain, -1 - supervised_B.astype(np.int64), pieces.token_B)
    if not len(key):
        return ()
    bounds = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(key)]
    segments: list[Segment] = []
    at_events = set(events.tolist())
    for start, stop in itertools.pairwise(bounds):
        if start in at_events and not (segments and segments[-1].supervised):
            segments.append(Segment("", True))
        text = pieces.data[start:stop].decode()
        segments.append(Segment(text, bool(supervised_B[start]), _ROLES[role_B[start]]))
    return tuple(segments)


def _status(count: int, has_record: Bools) -> str:
    if count == 0:
        return "empty"
    return "ok" if has_record.any() else "no_supervised_text"
