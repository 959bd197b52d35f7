"""The tokens of one text, and where each lies in it: what a tokenizer makes of a row.

Shape legend: T = tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np

from logitstore.format.numpy_types import I64, Bools
from logitstore.text.supervised_bytes import SupervisedBytes


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """A text as one tokenizer sees it: its tokens, and the bytes that each one covers.

    Attributes:
        token_ids: (T,) the whole sequence, with the prefix (BOS) that the tokenizer itself adds.
        has_record: (T,) supervised, and predicted by something before it.
        byte_starts: (T,) supervised UTF-8 bytes before the token; 0 where `has_record` is false.
        byte_lengths: (T,) supervised bytes of the token; 0 where `has_record` is false.
        is_eos: (T,) the end of the text, or of a turn: a token without bytes, after the last byte.
        text_starts: (T,) bytes of the whole text, context too, before the token; 0 for the prefix.
        text_ends: (T,) bytes of the whole text up to the token's end.
        heads: (T,) bytes of the token in context before its first supervised byte; 0 where
            `has_record` is false.
        tails: (T,) bytes of the token behind the supervised text that its first supervised byte is
            in; 0 where `has_record` is false.
        has_added_space: (T,) it writes one space in front that the text does not have.
        is_verbatim: (T,) what it writes, less an added space, is the text that it covers. True for
            tokens without bytes in the text: the prefix, and the end.
        status: `ok`; `truncated`, cut at `max_length`, so without an end; `empty`, no text at all;
            `no_supervised_text`, no supervised token (left) that something predicts;
            `spans_unknown`, the tokenizer's offsets do not describe this text, so no records.
    """

    token_ids: I64
    has_record: Bools
    byte_starts: I64
    byte_lengths: I64
    is_eos: Bools
    text_starts: I64
    text_ends: I64
    heads: I64
    tails: I64
    has_added_space: Bools
    is_verbatim: Bools
    status: str

    def cut(self, max_length: int | None) -> Self:
        """Keep the first `max_length` tokens; return the same object if there are no more."""
        if max_length is None or len(self.token_ids) <= max_length:
            return self
        kept = self.take(slice(max_length))
        if self.status not in ("ok", "truncated"):
            return kept
        return replace(kept, status="truncated" if kept.has_record.any() else "no_supervised_text")

    def take(self, tokens: I64 | slice, has_record: Bools | None = None) -> Self:
        """Keep some of the tokens, with fewer records if `has_record`, one for each, says so."""
        taken = {f.name: getattr(self, f.name)[tokens] for f in fields(self) if f.name != "status"}
        if has_record is not None:
            taken["has_record"] = has_record
            for name in ("byte_starts", "byte_lengths", "heads", "tails"):
                taken[name] = np.where(has_record, taken[name], 0)
        return replace(self, **taken)


class Tokens(NamedTuple):
    """The tokens of a text as :class:`TokenizedText` has them, before anything is put around."""

    ids: I64
    is_supervised: Bools
    starts: I64
    lengths: I64
    is_eos: Bools
    spans: tuple[I64, I64]
    heads: I64
    tails: I64
    has_added_space: Bools
    is_verbatim: Bools


def wrapped(
    text: Tokens, prefix: I64, supervised: SupervisedBytes, last: Sequence[int]
) -> TokenizedText:
    """Add the prefix and an end to a text; the first token has no record: nothing predicts it.

    `last` is the end: EOS or another token, or nothing.
    """
    begin, stop = len(prefix), len(prefix) + len(text.ids)
    whole = stop + len(last)

    def around(array: Any, first: int = 0, end: int = 0) -> Any:
        made = np.empty(whole, array.dtype)  # np.concatenate of three takes several times as long
        made[:begin], made[begin:stop], made[stop:] = first, array, end
        return made

    token_ids = around(text.ids)
    token_ids[:begin], token_ids[stop:] = prefix, last
    has_record = around(text.is_supervised, end=supervised.at_end)
    has_record[:1] = False  # nothing predicts it
    of_records = (
        around(text.starts, end=supervised.total_bytes),
        *map(around, (text.lengths, text.heads, text.tails)),
    )
    if not has_record.all():
        others = ~has_record
        for array in of_records:
            array[others] = 0
    return TokenizedText(
        token_ids=token_ids,
        has_record=has_record,
        byte_starts=of_records[0],
        byte_lengths=of_records[1],
        is_eos=around(text.is_eos, end=True),
        text_starts=around(text.spans[0], end=supervised.text_bytes),
        text_ends=around(text.spans[1], end=supervised.text_bytes),
        heads=of_records[2],
        tails=of_records[3],
        has_added_space=around(text.has_added_space),
        is_verbatim=around(text.is_verbatim, first=True, end=True),
        status="ok" if has_record.any() else "no_supervised_text",
    )


def without_records(token_ids: I64, status: str) -> TokenizedText:
    """Make a text whose tokens have no records, for the reason that `status` says."""
    zeros, no = np.zeros(len(token_ids), np.int64), np.zeros(len(token_ids), np.bool_)
    return TokenizedText(
        token_ids=token_ids.astype(np.int64),
        has_record=no,
        byte_starts=zeros,
        byte_lengths=zeros,
        is_eos=no,
        text_starts=zeros,
        text_ends=zeros,
        heads=zeros,
        tails=zeros,
        has_added_space=no,
        is_verbatim=~no,
        status=status,
    )


def nothing(status: str) -> TokenizedText:
    """Make a text of no tokens, for the reason that `status` says."""
    return without_records(np.zeros(0, np.int64), status)
