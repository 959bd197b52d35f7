"""Render rows of any kind as segments and tokens, with one tokenizer and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.rows.dataset import Rows
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.conversation import Conversation, Supervise
from logitstore.text.ends import count_endless
from logitstore.text.student_turns import SUPERVISED_TEXT
from logitstore.text.token_ids import check_spelling, read_tokens
from logitstore.text.tokenizer import ByteTokenizer, TokenizedText
from logitstore.text.turns import MODES, SupervisedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUPERVISE = ("all", "last")
#: The status of a row with tool calls that its template does not write, and nothing else.
UNWRITTEN = "unwritten_tool_calls"


class Rendered(NamedTuple):
    """A row as text and as tokens, before it is cut to any length.

    Attributes:
        segments: Its text, in order.
        tokens: Its tokens, never cut.
        messages: The conversation as JSON, where the row is one.
        prefix_length: Tokens at its head that every part of the row begins with: BOS or none.
        endless: Supervised turns that no token ends.
        unwritten: Supervised turns that are left out: their tool calls are not written.
    """

    segments: tuple[Segment, ...]
    tokens: TokenizedText
    messages: str | None
    prefix_length: int
    endless: int = 0
    unwritten: int = 0


@dataclass(frozen=True)
class Renderer:
    """A renderer of the rows of a dataset for one model.

    Attributes:
        rows: The dataset.
        tokenizer: The model's.
        template: Its chat template; None where the rows are not conversations.
        supervise: `all` assistant turns, or the `last`.
        supervised_text: Their `content`, or all that the template writes in a `turn`; None where
            completions are yet to be written.
        kwargs: Variables that the user gave the template.
        add_eos: Whether EOS follows a text (of kinds `text` and `prompt_completion`).
    """

    rows: Rows
    tokenizer: ByteTokenizer
    template: ChatTemplate | None = None
    supervise: Supervise = "all"
    supervised_text: SupervisedText | None = "content"
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
        supervised_text: str | None = None,
        template_path: str | None = None,
        template_kwargs: str | Mapping[str, Any] | None = None,
        add_eos: bool = True,
        prompts: bool = False,
    ) -> Self:
        """Make a renderer for these rows, and check everything that can be checked without a row.

        Args:
            rows: The dataset.
            tokenizer: The model's, with its chat template.
            reader: The same, by bytes.
            supervise: `all` (the default) or `last`, of conversations.
            supervised_text: `content` (the default) or `turn`, of conversations.
            template_path: Another template, a Jinja file or a tokenizer's folder.
            template_kwargs: Variables of the template for every row, a dict or JSON.
            add_eos: Whether EOS follows a text.
            prompts: Whether rows have only prompts, for completions that are yet to be written.

        Raises:
            InputError: A setting that has no effect on these rows or cannot be used; rows of
                tokens that a tokenizer like this one cannot spell.
        """
        if supervise not in (None, *SUPERVISE):
            raise InputError(f"--supervise is {supervise}, expected {' or '.join(SUPERVISE)}.")
        if supervised_text not in (None, *MODES):
            raise InputError(
                f"--supervised-text is {supervised_text}, expected {' or '.join(MODES)}."
            )
        if rows.kind != "conversation":
            _reject_idle(rows, supervise, supervised_text, template_path, template_kwargs)
            if rows.kind == "tokens":
                check_spelling(reader)
            return cls(rows, reader, add_eos=add_eos and rows.kind != "tokens")
        kwargs = parse_kwargs(template_kwargs, "--chat-template-kwargs")
        template = ChatTemplate.of(tokenizer, reader, path=template_path, kwargs=kwargs)
        chosen: Supervise = "last" if supervise == "last" else "all"
        text: SupervisedText = "turn" if supervised_text == "turn" else "content"
        reader = reader.with_ends(template.end_ids)
        kept = None if prompts else text
        return cls(rows, reader, template, chosen, kept, kwargs, add_eos=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide a store's records, as the `rendering` of its spec has them."""
        settings: dict[str, Any] = {"kind": self.rows.kind, "add_eos": self.add_eos}
        if self.template is not None:
            settings["supervise"] = self.supervise
            # Stores from before this key existed were rendered otherwise, and cannot be resumed.
            if self.supervised_text is not None:
                settings[SUPERVISED_TEXT] = self.supervised_text
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
        mode = self.supervised_text or "content"
        found = template.render(conversation, self.rows.where(i), mode)
        segments = found.segments
        tokens = self.tokenizer.encode(segments, add_eos=False, add_prefix=False)
        if found.unwritten and not tokens.has_record.any():
            tokens = replace(tokens, status=UNWRITTEN)
        return Rendered(
            segments,
            tokens,
            conversation.to_json(),
            self.prefix_length(tokens),
            count_endless(segments, tokens.byte_starts, tokens.is_eos),
            len(found.unwritten),
        )

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
    supervised_text: str | None,
    template_path: str | None,
    template_kwargs: str | Mapping[str, Any] | None,
) -> None:
    """Reject flags that would have no effect, so that they are no surprise later."""
    for flag, value in (
        ("--supervise", supervise),
        ("--supervised-text", supervised_text),
        ("--chat-template-path", template_path),
        ("--chat-template-kwargs", template_kwargs),
    ):
        if value is not None:
            raise InputError(
                f"{rows.name}: its rows are not conversations (columns {', '.join(rows.columns)}), "
                f"so {flag} {value} would have no effect. Leave it out."
            )
