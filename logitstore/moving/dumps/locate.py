"""Find where the tokens of a dump's row lie in its text, and which of them have a list.

    tokens         A row of ids alone: its text is what they decode to, as in a capture of
                   `input_ids`.
    conversation   A row of messages, which the teacher's chat template renders. It has lists for
                   all tokens, for the supervised ones, or for the answer that the teacher
                   generated. The place of an answer's tokens follows from the bytes they decode to,
                   since a sampler does not always cut a text as the tokenizer would.

Shape legend: T = tokens of a row, n = records of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.numpy_types import F64, I64
from logitstore.moving.dumps.row import Dumped
from logitstore.records import SequenceText
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation, Supervise
from logitstore.text.token_ids import TokenRow, read_tokens
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.text.turns import MODES, SupervisedText
from logitstore.writing.lists.lists import Lists, reject_lengths

#: Statuses: supervised tokens without lists; a text that the chat template renders differently.
NO_LISTS, CHANGED = "no_lists", "template_changed_text"


@dataclass(frozen=True)
class Placed:
    """A row of a dump with the places of its records in its text.

    Attributes:
        line: The text of the row.
        token_ids: (n,) the tokens.
        byte_starts: (n,) supervised bytes before each token.
        byte_lengths: (n,) bytes of each token.
        lists: (n,) the list of each token, never empty.
        own: (n,) log-probabilities of the tokens themselves; NaN where they are not known.
        ranks: (n,) ranks of the tokens in the vocabulary; NaN where they are not known.
        supervised: The number of tokens to train on, with a list or without.
        fits: The number of lists that hold their own token, the one after it, the one before it.
        looked_at: The number of lists that `fits` was counted over.
    """

    line: SequenceText
    token_ids: I64
    byte_starts: I64
    byte_lengths: I64
    lists: Lists
    own: F64
    ranks: F64
    supervised: int
    fits: tuple[int, int, int] = (0, 0, 0)
    looked_at: int = 0


@dataclass(frozen=True)
class Placer:
    """A finder of the records of one dump's rows in their text.

    Attributes:
        tokenizer: The teacher's tokenizer.
        template: The teacher's chat template; None if the rows are tokens.
        supervise: `all` assistant turns of a conversation, or the `last`.
        kwargs: The variables that the user gave for the template.
        moves_on: Whether a list describes the token after the one that it is stored with.
    """

    tokenizer: ByteTokenizer
    template: ChatTemplate | None
    supervise: Supervise = "all"
    kwargs: Mapping[str, Any] | None = None
    moves_on: bool = False

    def place(self, dumped: Dumped, row: int, where: str) -> list[Placed]:
        """Find the records of row number `row` in its text; one for each document in it.

        Raises:
            InputError: The row is of another kind than the first, or its lists do not belong to
                its tokens.
        """
        if (dumped.messages is None) != (self.template is None):
            kinds = ("token ids alone", "messages")
            has, first = kinds[dumped.messages is not None], kinds[self.template is not None]
            raise InputError(
                f"{where}: has {has}, but the first row has {first}. Import the two kinds of rows "
                "into two stores."
            )
        if dumped.messages is None:
            return self._documents(dumped, row, where)
        if dumped.answer_ids is not None:
            return [self._answer(dumped, row, where)]
        return [self._conversation(dumped, row, where)]

    def _documents(self, dumped: Dumped, row: int, where: str) -> list[Placed]:
        """Place each document of a row of token ids by itself: they are the row's parts."""
        moved = self._moved(dumped)
        whole = (np.arange(len(moved.lists)),)
        placed: list[Placed] = []
        bytes_before = 0
        for part, places in enumerate(dumped.documents or whole):
            placed.append(self._tokens(moved.take(places), (row, part, bytes_before), where))
            bytes_before += len(placed[-1].line.supervised_bytes)
        return placed

    def _tokens(self, dumped: Dumped, at: tuple[int, int, int], where: str) -> Placed:
        """Place the tokens of a text; `at` are its row, its part, and the bytes before that."""
        ids, (row, part, bytes_before) = dumped.token_ids, at
        assert ids is not None
        is_wanted = dumped.is_wanted
        if is_wanted is None:
            is_wanted = dumped.lists.counts > 0
        segments, text = read_tokens(TokenRow(ids, is_wanted), self.tokenizer, where)
        line = SequenceText(row, part, text.status, segments, supervised_start=bytes_before)
        places = np.flatnonzero(text.has_record)
        spans = (ids, text.byte_starts + bytes_before, text.byte_lengths)
        return _placed(line, [array[places] for array in spans], dumped, places, ids)

    def _conversation(self, dumped: Dumped, row: int, where: str) -> Placed:
        assert dumped.messages is not None
        conversation = Conversation.choose(dumped.messages, self.supervise)
        line, text = self._scored(conversation, dumped, row, where)
        if dumped.token_ids is not None and not np.array_equal(dumped.token_ids, text.token_ids):
            raise InputError(
                f"{where}: the chat template writes its messages as "
                f"{counted(len(text.token_ids), 'token')} "
                f"that are not its {len(dumped.token_ids):,} token ids. Give the template that the "
                "teacher was asked with by --chat-template-path, or leave the messages out."
            )
        places = np.flatnonzero(text.has_record)
        spans = [array[places] for array in (text.token_ids, text.byte_starts, text.byte_lengths)]
        line = line._replace(status=text.status)
        if len(dumped.lists) == len(text.token_ids):
            return _placed(line, spans, self._moved(dumped), places, text.token_ids)
        if len(dumped.lists) != len(places) or self.moves_on:
            reject_lengths(
                where,
                f"lists of a conversation with {len(places):,} supervised tokens",
                len(dumped.lists),
                len(text.token_ids),
            )
        return _placed(line, spans, dumped, np.arange(len(places)), spans[0])

    def _answer(self, dumped: Dumped, row: int, where: str) -> Placed:
        assert dumped.messages is not None
        assert dumped.answer_ids is not None
        conversation = Conversation.choose(dumped.messages, "last")
        _check_ids(dumped.answer_ids, self.tokenizer, where)
        is_end = np.isin(dumped.answer_ids, np.array(self.tokenizer.eos_ids, np.int64))
        stop = int(np.argmax(is_end)) + 1 if is_end.any() else len(is_end)
        ids, ends = dumped.answer_ids[:stop], is_end[:stop]
        written = self.tokenizer.written(ids[~ends])
        text = b"".join(written)
        for mode in MODES:  # the teacher may have written what its template writes, too
            line = self._line(conversation, row, where, mode)
            extra = int(text == b" " + line.supervised_bytes)
            if text[extra:] == line.supervised_bytes:
                break
        else:
            nothing = np.zeros(0, np.int64)
            changed = line._replace(status=CHANGED)
            none = Dumped(Lists.none(0))
            return _placed(changed, [nothing] * 3, none, nothing, nothing)
        ends_at = np.maximum(np.cumsum([*map(len, written)], dtype=np.int64) - extra, 0)
        starts = np.concatenate([[0], ends_at])[: len(written)]
        lengths = ends_at - starts
        if ends.any():  # the end of the turn: an event without bytes, behind the text
            starts, lengths = np.append(starts, len(text) - extra), np.append(lengths, 0)
        spans = [ids, starts.astype(np.int64), lengths.astype(np.int64)]
        return _placed(line, spans, dumped, np.arange(len(ids)), dumped.answer_ids)

    def _scored(
        self, conversation: Conversation, dumped: Dumped, row: int, where: str
    ) -> tuple[SequenceText, TokenizedText]:
        """Render a conversation whose supervised tokens are those with lists, if that can be."""
        read = []
        for mode in MODES:
            line = self._line(conversation, row, where, mode)
            text = self.tokenizer.encode(line.segments, add_eos=False, add_prefix=False)
            read.append((line, text))
            if len(dumped.lists) in (len(text.token_ids), int(text.has_record.sum())):
                return line, text
        return read[0]

    def _line(
        self, conversation: Conversation, row: int, where: str, mode: SupervisedText
    ) -> SequenceText:
        assert self.template is not None
        segments = self.template.segments(conversation, where, mode)
        return SequenceText(row, 0, "ok", segments, messages=conversation.to_json())

    def _moved(self, dumped: Dumped) -> Dumped:
        """Shift lists to the tokens that they describe."""
        if not self.moves_on:
            return dumped
        return replace(dumped, lists=dumped.lists.moved_on())


def _placed(
    line: SequenceText, spans: list[I64], dumped: Dumped, places: I64, tokens: I64
) -> Placed:
    """Make records of the tokens to train on that have a list.

    Args:
        line: The text of the row.
        spans: Ids, starts and lengths of the tokens to train on.
        dumped: The lists of `tokens`.
        places: The places of the tokens to train on among `tokens`.
        tokens: The tokens that the lists belong to.
    """
    lists = dumped.lists
    has = lists.counts[places] > 0
    chosen = places[has]
    ids, starts, lengths = (array[has] for array in spans)
    if not len(chosen) and line.status == "ok":
        line = line._replace(status=NO_LISTS)
    unknown = np.full(len(lists), np.nan)
    own = unknown if dumped.token_logprobs is None else dumped.token_logprobs
    ranks = unknown if dumped.ranks is None else dumped.ranks
    fits, looked_at = _fits(lists, tokens)
    return Placed(
        line,
        ids,
        starts,
        lengths,
        lists.take(chosen),
        own[chosen],
        ranks[chosen],
        len(places),
        fits,
        looked_at,
    )


def _fits(lists: Lists, tokens: I64) -> tuple[tuple[int, int, int], int]:
    """Count the lists that hold their own token, the one after it, and the one before it."""
    if len(tokens) < 3:
        return (0, 0, 0), 0
    inner = np.zeros(len(tokens), np.bool_)
    inner[1:-1] = lists.counts[1:-1] > 0
    after, before = np.roll(tokens, -1), np.roll(tokens, 1)
    hits = (int((lists.hold(t) & inner).sum()) for t in (tokens, after, before))
    own, late, early = hits
    return (own, late, early), int(inner.sum())


def _check_ids(ids: I64, tokenizer: ByteTokenizer, where: str) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.size:
        raise InputError(
            f"{where}: token ids reach from {ids.min()} to {ids.max()}, but the tokenizer has 0 to "
            f"{tokenizer.size - 1}. Give the --tokenizer that the dump was made with."
        )
