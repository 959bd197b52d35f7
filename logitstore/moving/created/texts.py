"""Find the tokens of a row that a caller gives, and where they lie in its text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.moving.created import arrays
from logitstore.moving.dumps.row import messages_of
from logitstore.records import Segment, SequenceText
from logitstore.rows.token_rows import wanted_of
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.conversation import Conversation, Supervise
from logitstore.text.student_turns import SUPERVISED_TEXT
from logitstore.text.token_ids import TokenRow, check_spelling, read_tokens
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT, COMPLETION, TOKENS, TALK = "text", "prompt_completion", "tokens", "conversation"
KINDS = (TEXT, COMPLETION, TOKENS, TALK)
_SHOWN_TOKENS = 6


class Row(NamedTuple):
    """What a caller gave of a row's text; None for what is not there.

    Attributes:
        text: Text to train on.
        prompt: Text before it, which is context.
        messages: A conversation.
        input_ids: (T,) tokens of the teacher.
        labels: (T,) -100 for tokens of `input_ids` that are not trained on.
    """

    text: str | None = None
    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    input_ids: Any = None
    labels: Any = None

    def kind(self, where: str) -> str:
        """Tell the kind of the row, as in a spec.

        Raises:
            InputError: There is nothing, or what does not go together.
        """
        given = [n for n in self._fields if getattr(self, n) is not None]
        for name in {"text", "prompt"} & {*given}:
            if not isinstance(value := getattr(self, name), str):
                raise InputError(
                    f"{where}: {name} is {type(value).__name__}, expected a str. Decode it, or "
                    "give messages=… or input_ids=… by their names."
                )
        if self.messages is not None and {*given} <= {"messages", "input_ids"}:
            return TALK
        if self.messages is None and self.text is not None and self.labels is None:
            return TEXT if self.prompt is None else COMPLETION
        if {*given} <= {"input_ids", "labels"} and self.input_ids is not None:
            return TOKENS
        raise InputError(
            f"{where}: has {', '.join(given) or 'no text'}. Give a text (with prompt=… before it "
            "if it has one), or messages=…, or input_ids=… (with labels=… if not all are trained "
            "on); input_ids=… beside a text or messages are compared with it."
        )


@dataclass(frozen=True)
class Tokens:
    """The tokens of a row.

    Attributes:
        line: Its text, as the store keeps it.
        ids: (T,) all of its tokens.
        places: (n,) those that get a record.
        byte_starts: (n,) supervised bytes before each of these.
        byte_lengths: (n,) supervised bytes of each.
        moves_on: Whether row t of an array is of token t + 1.
        shown: The first tokens, for messages.
    """

    line: SequenceText
    ids: I64
    places: I64
    byte_starts: I64
    byte_lengths: I64
    moves_on: bool
    shown: str


class Texts:
    """Reads rows of one kind with one tokenizer.

    Args:
        loaded: The teacher's tokenizer.
        tokenizer: The same, by bytes.
        kind: Of the rows.
        add_eos: Whether EOS follows a text.
        supervise: Turns of a conversation to train on: `all`, or the `last`.
        template_path: Another chat template.
        template_kwargs: Its variables.
        moves_on: Whether row t of an array is of token t + 1.

    Raises:
        InputError: A setting that has no effect on such rows, or a tokenizer that cannot read them.
    """

    def __init__(
        self,
        loaded: "PreTrainedTokenizerBase",
        tokenizer: ByteTokenizer,
        kind: str,
        *,
        add_eos: bool,
        supervise: str | None,
        template_path: str | None,
        template_kwargs: str | Mapping[str, Any] | None,
        moves_on: bool,
    ) -> None:
        self.kind, self._add_eos, self._moves_on = kind, add_eos, moves_on
        self._supervise: Supervise = "last" if supervise == "last" else "all"
        self._kwargs: Mapping[str, Any] | None = None
        self._template: ChatTemplate | None = None
        idle: dict[str, Any] = {"add_eos": add_eos or None} if kind in (TOKENS, TALK) else {}
        if kind == TALK:
            self._kwargs = parse_kwargs(template_kwargs, "--chat-template-kwargs")
            self._template = ChatTemplate.of(
                loaded, tokenizer, path=template_path, kwargs=self._kwargs
            )
            tokenizer = tokenizer.with_ends(self._template.end_ids)
        else:
            idle |= {
                "supervise": supervise,
                "chat_template_path": template_path,
                "chat_template_kwargs": template_kwargs,
            }
            if kind == TOKENS:
                check_spelling(tokenizer)
        for name, value in idle.items():
            if value is not None:
                raise InputError(
                    f"{name} is {value}, which has no effect on rows of this kind ({kind}). Leave "
                    "it out."
                )
        self.tokenizer = tokenizer

    def rendering(self) -> dict[str, Any]:
        """Describe how rows become text, as a spec does."""
        said: dict[str, Any] = {"kind": self.kind, "add_eos": self._add_eos, "max_length": None}
        if self._template is not None:
            said |= {
                "supervise": self._supervise,
                SUPERVISED_TEXT: "content",
                "chat_template_sha256": self._template.digest,
                "chat_template_kwargs": dict(self._kwargs or {}),
            }
        return said

    def read(self, number: int, row: Row, where: str) -> Tokens:
        """Tokenise a row.

        Raises:
            InputError: It cannot be read, or `input_ids` beside a text are other tokens.
        """
        line, text = self._read(number, row, where)
        if row.input_ids is not None:
            self._compare(_row_of(row.input_ids, f"{where}: input_ids"), text, where)
        places = np.flatnonzero(text.has_record)
        return Tokens(
            line._replace(status=text.status),
            text.token_ids,
            places,
            text.byte_starts[places],
            text.byte_lengths[places],
            self._moves_on,
            self._shown(text.token_ids),
        )

    def _read(self, number: int, row: Row, where: str) -> tuple[SequenceText, TokenizedText]:
        if self.kind == TOKENS:
            ids = _row_of(row.input_ids, f"{where}: input_ids")
            columns = {}
            if row.labels is not None:
                columns["labels"] = _row_of(row.labels, f"{where}: labels")
            is_wanted = wanted_of(ids, columns, where)
            if is_wanted is None:
                is_wanted = np.ones(len(ids), np.bool_)
            segments, text = read_tokens(TokenRow(ids, is_wanted), self.tokenizer, where)
            return SequenceText(number, 0, text.status, segments), text
        if self.kind == TALK:
            assert self._template is not None
            messages = messages_of(list(row.messages or ()), where)
            talk = Conversation.choose(messages, self._supervise)
            segments = self._template.segments(talk, where, "content")
            text = self.tokenizer.encode(segments, add_eos=False, add_prefix=False)
            return SequenceText(number, 0, text.status, segments, messages=talk.to_json()), text
        pairs = ((row.prompt, False), (row.text, True))
        segments = tuple(Segment(said, flag) for said, flag in pairs if said is not None)
        try:
            text = self.tokenizer.encode(segments, add_eos=self._add_eos)
        except InputError as e:
            raise InputError(f"{where}: {e}") from None
        return SequenceText(number, 0, text.status, segments), text

    def _compare(self, given: I64, text: TokenizedText, where: str) -> None:
        """Compare tokens that are given with those that the text becomes."""
        own = text.token_ids
        if given.shape == own.shape and bool((given == own).all()):
            return
        both = given.ravel()[: len(own)], own[: given.size]
        first = int(np.flatnonzero(np.append(both[0] != both[1], True))[0])
        raise InputError(
            f"{where}: its {given.size:,} input_ids are not the {counted(len(own), 'token')} of "
            f"its text ({self.tokenizer.name} begins with {self._shown(own)}): the first that "
            f"differs is number {first:,}. Give the tokenizer that the logits were computed with, "
            "or input_ids=… alone."
        )

    def _shown(self, ids: I64) -> str:
        shown = ", ".join(str(i) for i in ids[:_SHOWN_TOKENS])
        return f"{shown}{', …' * (len(ids) > _SHOWN_TOKENS)}" or "nothing"


def _row_of(values: Any, where: str) -> I64:
    """Copy the token ids of one row, which may be the one item of a batch."""
    found = arrays.integers(values, where)
    if found.ndim == 2 and len(found) == 1:
        found = found[0]
    if found.ndim != 1:
        raise InputError(f"{where}: has the shape {found.shape}, expected [tokens]. Give one row.")
    return found
