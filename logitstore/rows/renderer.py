"""Render rows of any kind as segments and tokens, with one tokenizer and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.rows.dataset import Rows
from logitstore.rows.private import private_conversation
from logitstore.text import own_text
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.conversation import Conversation, Supervise
from logitstore.text.ends import count_endless
from logitstore.text.parse_special import SpecialNames
from logitstore.text.student_turns import SUPERVISED_TEXT
from logitstore.text.token_ids import check_spelling, read_tokens
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.text.turns import MODES, SUPERVISE, SupervisedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The status of a row with tool calls that its template does not write, and nothing else.
UNWRITTEN = "unwritten_tool_calls"


class Rendered(NamedTuple):
    """A row as text and as tokens, before it is cut to any length.

    Attributes:
        segments: Its text, in order.
        tokens: Its tokens, never cut.
        messages: The conversation as JSON, where the row is one; the row as the student reads it,
            where the teacher saw another prompt.
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
        special: The special tokens that are read as such where a text has their names.
    """

    rows: Rows
    tokenizer: ByteTokenizer
    template: ChatTemplate | None = None
    supervise: Supervise = "all"
    supervised_text: SupervisedText | None = "content"
    kwargs: Mapping[str, Any] | None = None
    add_eos: bool = True
    special: SpecialNames | None = None

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
        parse_special: bool = False,
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
            parse_special: Whether names of special tokens in a text are read as these tokens.

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
            special = _special_names(rows, reader) if parse_special else None
            return cls(rows, reader, add_eos=add_eos and rows.kind != "tokens", special=special)
        if parse_special:
            raise _no_text_to_parse(rows)
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
        if self.special is not None:  # readers then have tokens to replace, as in rows of ids
            settings |= {"kind": "tokens", "parse_special": True}
        if self.rows.private is not None:
            settings["private"] = self.rows.private
        if obeys := self.rows.survey.obeys:
            settings["obeys"] = list(obeys)
        if self.template is not None:
            settings["supervise"] = self.supervise
            # Stores from before this key existed were rendered otherwise, and cannot be resumed.
            if self.supervised_text is not None:
                settings[SUPERVISED_TEXT] = self.supervised_text
            settings["chat_template_sha256"] = self.template.digest
            settings["chat_template_kwargs"] = dict(self.kwargs or {})
        return settings

    def __call__(self, i: int) -> Rendered:
        """Render row `i`, of any kind but `tokens`, whose rows may be several texts.

        Raises:
            InputError: A row that cannot be read or rendered; names it.
        """
        if self.template is not None:
            return self._conversation(i, self.template)
        own, theirs = self.rows.segments(i), self.rows.teacher_segments(i)
        messages = None if theirs is None else own_text.to_json(self.parsed(own))
        segments = self.parsed(own if theirs is None else theirs)
        tokens = self.tokenizer.encode(segments, add_eos=self.add_eos and self.special is None)
        return Rendered(segments, tokens, messages, self.tokenizer.prefix_length)

    def documents(self, i: int) -> list[Rendered]:
        """Render row `i`, each document of a row that is packed of several by itself.

        Raises:
            InputError: A row that cannot be read or rendered; names it.
        """
        if self.rows.kind != "tokens":
            return [self(i)]
        rendered = []
        for document in self.rows.documents(i):
            segments, tokens = read_tokens(document, self.tokenizer, self.rows.where(i))
            rendered.append(Rendered(segments, tokens, None, self.prefix_length(tokens)))
        return rendered

    def parsed(
        self, segments: tuple[Segment, ...], *, add_eos: bool | None = None
    ) -> tuple[Segment, ...]:
        """Cut special tokens out of a text, and put its end there, where that was asked for."""
        if self.special is None:
            return segments
        return self.special.parsed(segments, add_eos=self.add_eos if add_eos is None else add_eos)

    def conversations(self, i: int) -> tuple[Conversation, Conversation]:
        """Read row `i` of conversations: as the student sees it, and as the teacher does.

        Raises:
            InputError: They cannot be read, or their answers are not the same.
        """
        row, theirs = self.rows.dialogue(i), self.rows.teacher_dialogue(i)
        own = Conversation.choose(
            row.messages, self.supervise, first=row.first, tools=row.tools, kwargs=row.kwargs
        )
        return own, own if theirs is None else private_conversation(own, theirs, self.rows.where(i))

    def _conversation(self, i: int, template: ChatTemplate) -> Rendered:
        own, conversation = self.conversations(i)
        mode = self.supervised_text or "content"
        found = template.render(conversation, self.rows.where(i), mode)
        segments = found.segments
        tokens = self.tokenizer.encode(segments, add_eos=False, add_prefix=False)
        if found.unwritten and not tokens.has_record.any():
            tokens = replace(tokens, status=UNWRITTEN)
        return Rendered(
            segments,
            tokens,
            own.to_json(),
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


def _special_names(rows: Rows, reader: ByteTokenizer) -> SpecialNames:
    """Find the special tokens that texts may name.

    Raises:
        InputError: There are no texts, or none that may be named.
    """
    if rows.kind == "tokens":
        raise _no_text_to_parse(rows)
    names = SpecialNames(reader)
    if not names.pattern:
        raise InputError(
            f"--parse-special: {reader.name} reads no special token in a text. Leave it out."
        )
    return names


def _no_text_to_parse(rows: Rows) -> InputError:
    return InputError(
        f"{rows.name}: its rows are not text (columns {', '.join(rows.columns)}), so "
        "--parse-special would have no effect. Leave it out."
    )
