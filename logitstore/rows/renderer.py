"""Render rows of any kind as segments and tokens, with one tokenizer and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.rows.dataset import Rows
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.conversation import Conversation, Supervise
from logitstore.text.token_ids import check_spelling, read_tokens
from logitstore.text.tokenizer import ByteTokenizer, TokenizedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUPERVISE = ("all", "last")


class Rendered(NamedTuple):
    """A row as text and as tokens, before it is cut to any length.

    Attributes:
        segments: Its text, in order.
        tokens: Its tokens, never cut.
        messages: The conversation as JSON, where the row is one.
        prefix_length: Tokens at its head that every part of the row begins with: BOS or none.
    """

    segments: tuple[Segment, ...]
    tokens: TokenizedText
    messages: str | None
    prefix_length: int


@dataclass(frozen=True)
class Renderer:
    """A renderer of the rows of a dataset for one model.

    Attributes:
        rows: The dataset.
        tokenizer: The model's.
        template: Its chat template; None where the rows are not conversations.
        supervise: `all` assistant turns, or the `last`.
        kwargs: Variables that the user gave the template.
        add_eos: Whether EOS follows a text (of kinds `text` and `prompt_completion`).
    """

    rows: Rows
    tokenizer: ByteTokenizer
    template: ChatTemplate | None = None
    supervise: Supervise = "all"
    kwargs: Mapping[str, Any] | None = None
    add_eos: bool = True

    @classmethod
    def make(
        cls,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        reader: ByteTokenizer,
        *,
        supervise: str | None = None,
        template_path: str | None = None,
        template_kwargs: str | Mapping[str, Any] | None = None,
        add_eos: bool = True,
    ) -> Self:
        """Make a renderer for these rows, and check everything that can be checked without a row.

        Args:
            rows: The dataset.
            tokenizer: The model's, with its chat template.
            reader: The same, by bytes.
            supervise: `all` (the default) or `last`, of conversations.
            template_path: Another template, a Jinja file or a tokenizer's folder.
            template_kwargs: Variables of the template for every row, a dict or JSON.
            add_eos: Whether EOS follows a text.

        Raises:
            InputError: A setting that has no effect on these rows or cannot be used; rows of
                tokens that a tokenizer like this one cannot spell.
        """
        if supervise not in (None, *SUPERVISE):
            raise InputError(f"--supervise is {supervise}, expected {' or '.join(SUPERVISE)}.")
        if rows.kind != "conversation":
            _reject_idle(rows, supervise, template_path, template_kwargs)
            if rows.kind == "tokens":
                check_spelling(reader)
            return cls(rows, reader, add_eos=add_eos and rows.kind != "tokens")
        kwargs = parse_kwargs(template_kwargs, "--chat-template-kwargs")
        template = ChatTemplate.of(tokenizer, reader, path=template_path, kwargs=kwargs)
        chosen: Supervise = "last" if supervise == "last" else "all"
        return cls(rows, reader, template, chosen, kwargs, add_eos=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide a store's records, as the `rendering` of its spec has them."""
        settings: dict[str, Any] = {"kind": self.rows.kind, "add_eos": self.add_eos}
        if self.template is not None:
            settings["supervise"] = self.supervise
            settings["chat_template_sha256"] = self.template.digest
            settings["chat_template_kwargs"] = dict(self.kwargs or {})
        return settings

    def __call__(self, i: int) -> Rendered:
        """Render row `i`.

        Raises:
            InputError: A row that cannot be read or rendered; names it.
        """
        if self.template is not None:
            return self._conversation(i, self.template)
        if self.rows.kind == "tokens":
            segments, tokens = read_tokens(self.rows.tokens(i), self.tokenizer, self.rows.where(i))
            return Rendered(segments, tokens, None, self.prefix_length(tokens))
        segments = self.rows.segments(i)
        tokens = self.tokenizer.encode(segments, add_eos=self.add_eos)
        return Rendered(segments, tokens, None, self.tokenizer.prefix_length)

    def _conversation(self, i: int, template: ChatTemplate) -> Rendered:
        row = self.rows.dialogue(i)
        conversation = Conversation.choose(
            row.messages, self.supervise, first=row.first, tools=row.tools, kwargs=row.kwargs
        )
        segments = template.segments(conversation, self.rows.where(i))
        tokens = self.tokenizer.encode(segments, add_eos=False, add_prefix=False)
        return Rendered(segments, tokens, conversation.to_json(), self.prefix_length(tokens))

    def prefix_length(self, tokens: TokenizedText) -> int:
        """Count the prefix tokens at the head of a row that has its own BOS, or none."""
        prefix = self.tokenizer.prefix
        if len(prefix) and tokens.token_ids[: len(prefix)].tolist() == prefix.tolist():
            return len(prefix)
        return int(
            bool(len(tokens.token_ids)) and tokens.token_ids[0] == self.tokenizer.bos_token_id
        )


def _reject_idle(
    rows: Rows,
    supervise: str | None,
    template_path: str | None,
    template_kwargs: str | Mapping[str, Any] | None,
) -> None:
    """Reject flags that would have no effect, so that they are no surprise later."""
    for flag, value in (
        ("--supervise", supervise),
        ("--chat-template-path", template_path),
        ("--chat-template-kwargs", template_kwargs),
    ):
        if value is not None:
            raise InputError(
                f"{rows.name}: its rows are not conversations (columns {', '.join(rows.columns)}), "
                f"so {flag} {value} would have no effect. Leave it out."
            )
