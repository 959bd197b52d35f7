"""Render conversations through a chat template, and find which characters the assistant wrote.

Where the template writes a message's texts is found by markers in their place (:mod:`sentinels`);
of a template that looks into the texts, by its `{% generation %}` marks, or by what each turn adds
to the rendering of the messages before it (:mod:`marked_turns`). So two templates that write a
content unchanged supervise the same bytes, whatever else they write into the turn.

Templates run in the sandbox of `transformers`. They see no clock: it is always 26 July
2024 (the date in Llama 3's own template), since a store resumed tomorrow must render the same text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from logitstore.errors import InputError, in_a_line
from logitstore.models.loading import load_tokenizer
from logitstore.records import Segment
from logitstore.text.conversation import Conversation, Message
from logitstore.text.marked_turns import Prefixes, by_marks
from logitstore.text.slots import calls_of
from logitstore.text.strict_json import trouble
from logitstore.text.supervised_turns import Writer, by_slots
from logitstore.text.template_ends import find_ends
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.text.turns import Rendering, SupervisedText
from logitstore.text.utf8 import utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: In front of a template that asks for the date. A macro hides the global function of its name.
#: The line break is the one that Jinja drops after a block; what follows still begins a line.
_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    ' | replace("%Y", "2024") | replace("%y", "24") | replace("%m", "07") | replace("%d", "26")'
    ' | replace("%B", "July") | replace("%b", "Jul") | replace("%A", "Friday")'
    ' | replace("%a", "Fri") | replace("%H", "00") | replace("%M", "00") | replace("%S", "00")'
    " }}{%- endmacro %}\n"
)
_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

_WHICH = "Give a Jinja file, or the folder of a tokenizer that has a chat template."


@dataclass(frozen=True)
class ChatTemplate:
    """The way in which one tokenizer writes a conversation. Can be pickled.

    Attributes:
        source: The Jinja template.
        tool_source: The one for rows with tools; the same where the tokenizer has only one.
        variables: Special tokens, by role, and the user's variables for every row.
        ends: The special tokens that end a turn, as this tokenizer spells them.
        flag: The flag that names another template, for messages.
        end_ids: The ids of those that the template itself writes behind an answer.
        closing: What ends a last turn behind which the template writes nothing: what stands there
            in earlier turns, such as the mark of the next role; or nothing.
    """

    source: str
    tool_source: str
    variables: Mapping[str, Any]
    ends: tuple[str, ...]
    flag: str = "--chat-template-path"
    end_ids: tuple[int, ...] = ()
    closing: str = ""

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        reader: ByteTokenizer,
        *,
        path: str | Path | None = None,
        kwargs: Mapping[str, Any] | None = None,
        flag: str = "--chat-template-path",
    ) -> Self:
        """Take the tokenizer's own template, or that of the file or tokenizer folder at `path`.

        Args:
            tokenizer: The tokenizer with its template and special tokens.
            reader: The same tokenizer, by bytes.
            path: Another template.
            kwargs: Further variables, for every row.
            flag: The flag that names `path`, for messages.

        Raises:
            InputError: There is none, or it cannot be read.
        """
        template = tokenizer.chat_template if path is None else read_template(path, flag)
        named: dict[str, Any] = template if isinstance(template, dict) else {"default": template}
        source = named.get("default")
        if not source:
            name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
            raise InputError(
                f"{name}: the rows are conversations, but its tokenizer has no chat template to "
                f"write them with. Give one with {flag} FILE.jinja."
            )
        variables = {k: str(v) for k, v in tokenizer.special_tokens_map.items()} | dict(
            kwargs or {}
        )
        made = cls(source, named.get("tool_use", source), variables, _spelt(reader), flag)
        found, closing = find_ends(made.behind_answers(), reader)
        ends = _spelt(reader.with_ends(found))
        return replace(made, ends=ends, end_ids=found, closing=closing)

    @property
    def digest(self) -> str:
        """SHA-256 of the template's text, in hex."""
        both = [self.source, self.tool_source]
        return hashlib.sha256(json.dumps(both).encode()).hexdigest()

    def segments(
        self, conversation: Conversation, where: str, mode: SupervisedText = "content"
    ) -> tuple[Segment, ...]:
        """Render a conversation as segments, in order; see :meth:`render`."""
        return self.render(conversation, where, mode).segments

    def render(
        self, conversation: Conversation, where: str, mode: SupervisedText = "content"
    ) -> Rendering:
        """Render a conversation, and find what is trained on.

        Args:
            conversation: The row.
            where: Names it in messages, such as `rows.jsonl: row 3`.
            mode: `content`, what supervised messages say; or `turn`, all that the template writes
                in their turns.

        Raises:
            InputError: The template rejects it (with the template's own message), or looks into
                texts, has no marks, and writes earlier messages differently when others follow.
        """
        if not conversation.messages:
            return Rendering("", ())
        conversation, text = self._readable(conversation, where)
        utf8(text, where)
        if not conversation.supervised:
            return Rendering(text, ())
        rows = _Row(self, conversation, where)
        writer = Writer(rows.whole, rows.before, self.ends)
        found = by_slots(text, conversation, writer, mode)
        if found is None:
            prefixes = Prefixes(rows.before, rows.marks, self.ends, self.flag)
            marks = rows.marks(len(conversation.messages))
            found = by_marks(text, marks, conversation, prefixes, mode, where)
        return self._closed(found, conversation)

    def _closed(self, found: Rendering, conversation: Conversation) -> Rendering:
        """End the last turn as earlier ones are, if the template writes nothing behind it."""
        last = len(conversation.messages) - 1
        if not (self.closing and found.pieces and found.pieces[-1].message == last):
            return found
        if calls_of(conversation.messages[last]) or found.text[found.pieces[-1].stop :].strip():
            return found
        return found._replace(text=found.text + self.closing)

    def _readable(self, conversation: Conversation, where: str) -> tuple[Conversation, str]:
        """Render a conversation, without the word None for contents that there are not.

        Of a message without a content templates expect no key, null or an empty text; some write
        the word. The first is taken that is rendered with the fewest.
        """
        messages = [
            {k: v for k, v in message.items() if v is not None or k == "content"}
            for message in conversation.messages
        ]
        readings = [messages]
        if any(m.get("content") is None for m in messages):
            readings += [
                [{k: v for k, v in m.items() if v is not None} for m in messages],
                [m | {"content": ""} if m.get("content") is None else m for m in messages],
            ]
        found: dict[int, tuple[list[Message], str]] = {}
        failed: InputError | None = None
        for reading in readings:
            try:
                text, _ = self._write(reading, conversation, where)
                found.setdefault(text.count("None"), (reading, text))
            except InputError as error:
                failed = error
        if not found:
            assert failed is not None
            raise failed
        chosen, text = found[min(found)]
        return replace(conversation, messages=tuple(chosen)), text

    def behind_answers(self) -> tuple[str, str] | None:
        """Render what stands behind an answer in the middle of a conversation, and at its end.

        None where the template takes none of some plain conversations.
        """
        for system in ((), ({"role": "system", "content": "S"},)):
            said = [("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")]
            messages = [*system, *({"role": role, "content": text} for role, text in said)]
            talk = Conversation.choose(messages, "all")
            try:
                found = self.render(talk, "a probe")
            except InputError:
                continue
            if len(found.pieces) == 2:
                first, last = found.pieces
                return found.text[first.stop : last.start], found.text[last.stop :]
        return None

    def prompt(self, conversation: Conversation, where: str) -> str:
        """Render a conversation up to where the assistant's next turn begins.

        Args:
            conversation: The row.
            where: Names it in messages.

        Raises:
            InputError: The template rejects it.
        """
        if not conversation.messages:
            return ""
        conversation, _ = self._readable(conversation, where)
        text, _ = self._write(conversation.messages, conversation, where, prompt=True)
        utf8(text, where)
        return text

    def _write(
        self,
        messages: Sequence[Message],
        conversation: Conversation,
        where: str,
        *,
        prompt: bool = False,
        marks: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render messages with the conversation's tools, and find the spans that are marked.

        Raises:
            InputError: The template rejects them.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self.source if conversation.tools is None else self.tool_source
        has_marks = marks and _MARK.search(source) is not None
        variables = {**self.variables, **conversation.kwargs}
        try:
            rendered: Any = render_jinja_template(  # its annotation is wrong
                [list(messages)],
                tools=None if conversation.tools is None else list(conversation.tools),
                chat_template=(_CLOCK if "strftime_now" in source else "") + source,
                return_assistant_tokens_mask=has_marks,
                add_generation_prompt=prompt,
                **variables,
            )
        except Exception as error:  # a template's expressions raise anything
            # A variable of the user's, such as `chat_template`, may also clash with an argument.
            why = str(error).rstrip(".") if isinstance(error, TemplateError) else in_a_line(error)
            count = len(messages)
            part = "" if count == len(conversation.messages) else f" (messages before {count})"
            raise InputError(
                f"{where}: the chat template rejects this conversation{part}: {why}. Change the "
                f"row, or give another template with {self.flag}."
            ) from error
        texts, found = rendered
        return texts[0], list(found[0]) if has_marks else []


class _Row(NamedTuple):
    """A conversation with the template that writes it."""

    template: ChatTemplate
    conversation: Conversation
    where: str

    def whole(self, messages: Sequence[Message]) -> str:
        return self.template._write(messages, self.conversation, self.where)[0]

    def before(self, count: int, prompt: bool) -> str:
        messages = self.conversation.messages[:count]
        return self.template._write(messages, self.conversation, self.where, prompt=prompt)[0]

    def marks(self, count: int) -> list[tuple[int, int]]:
        messages = self.conversation.messages[:count]
        return self.template._write(messages, self.conversation, self.where, marks=True)[1]


def read_template(path: str | Path, flag: str = "--chat-template-path") -> str | dict[str, str]:
    """Read the template in a Jinja file, or that of the tokenizer in a folder.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    place = Path(path)
    if place.is_dir():
        tokenizer = load_tokenizer(path, local_files_only=True, named_by=flag, advice=_WHICH)
        template: Any = tokenizer.chat_template
        if not template:
            raise InputError(f"{flag} {path}: the tokenizer there has no chat template. {_WHICH}")
        return dict(template) if isinstance(template, dict) else str(template)
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read ({in_a_line(error)}). {_WHICH}") from error


def parse_kwargs(text: str | Mapping[str, Any] | None, flag: str) -> dict[str, Any]:
    """Parse the variables of a template from JSON.

    Raises:
        InputError: It is not a JSON object.
    """
    if text is None:
        return {}
    variables: Any = text
    if isinstance(text, str):
        try:
            variables = json.loads(text)
        except (ValueError, RecursionError) as error:
            why = trouble(error)
            if isinstance(error, json.JSONDecodeError):
                why = f"{error.msg} at column {error.colno}"
            raise InputError(
                f"{flag} {text:.80}: is not JSON ({why}). Give an object such as "
                "'{\"enable_thinking\": false}'."
            ) from error
    if not isinstance(variables, Mapping):
        raise InputError(
            f"{flag} {text}: expected a JSON object, found {type(variables).__name__}. Give one "
            "such as '{\"enable_thinking\": false}'."
        )
    return dict(variables)


def _spelt(reader: ByteTokenizer) -> tuple[str, ...]:
    """List the tokens that end a turn, as they are spelt; the longest first."""
    spelt = [text.decode(errors="replace") for text in reader.written(np.array(reader.eos_ids))]
    return tuple(sorted(dict.fromkeys(spelt), key=len, reverse=True))
