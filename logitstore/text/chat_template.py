"""Render conversations through a chat template, and find which characters the assistant wrote.

What the template writes for the content of an assistant's turn is supervised: the characters inside
its `{% generation %}` marks if it has them, else what the turn adds to the rendering of the
messages before it. In both cases the end of the turn (`<|im_end|>` and the like) is left out: it
begins the context that follows. White space that only the template puts around the content is left
out, too. So two templates that write a content unchanged supervise the same bytes.

Templates run in the sandbox of `transformers`. They see no clock: it is always 26 July
2024 (the date in Llama 3's own template), since a store resumed tomorrow must render the same text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from logitstore.errors import InputError, in_a_line
from logitstore.models.loading import load_tokenizer
from logitstore.records import Segment
from logitstore.text.conversation import Conversation, Message
from logitstore.text.tokenizer import END_TOKENS, ByteTokenizer, utf8

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


class _Span(NamedTuple):
    """A stretch of the rendered text, in characters, and the message that it belongs to."""

    start: int
    stop: int
    message: Message


@dataclass(frozen=True)
class ChatTemplate:
    """The way in which one tokenizer writes a conversation. Can be pickled.

    Attributes:
        source: The Jinja template.
        tool_source: The one for rows with tools; the same where the tokenizer has only one.
        variables: Special tokens, by role, and the user's variables for every row.
        ends: The special tokens that end a turn, as this tokenizer spells them.
        flag: The flag that names another template, for messages.
    """

    source: str
    tool_source: str
    variables: Mapping[str, Any]
    ends: tuple[str, ...]
    flag: str = "--chat-template-path"

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
        spelt = tokenizer.convert_ids_to_tokens(list(reader.eos_ids))
        ends = tuple(dict.fromkeys([*spelt, *END_TOKENS]))
        return cls(source, named.get("tool_use", source), variables, ends, flag)

    @property
    def digest(self) -> str:
        """SHA-256 of the template's text, in hex."""
        both = [self.source, self.tool_source]
        return hashlib.sha256(json.dumps(both).encode()).hexdigest()

    def segments(self, conversation: Conversation, where: str) -> tuple[Segment, ...]:
        """Render a conversation as segments, in order; roles are those of the messages.

        Args:
            conversation: The row.
            where: Names it in messages, such as `rows.jsonl: row 3`.

        Raises:
            InputError: The template rejects it (with the template's own message), or has no marks
                and writes earlier messages differently when others follow them.
        """
        if not conversation.messages:
            return ()
        text, marks = self._render(conversation, len(conversation.messages), where)
        utf8(text, where)
        spans = self._marked(conversation, marks, where) if marks else None
        if spans is None:
            spans = self._differences(conversation, text, where)
        return _cut(text, [self._content(text, span) for span in spans])

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
        text, _ = self._render(conversation, len(conversation.messages), where, prompt=True)
        utf8(text, where)
        return text

    def _marked(
        self, conversation: Conversation, marks: Sequence[tuple[int, int]], where: str
    ) -> list[_Span]:
        """Find the marks of the supervised messages."""
        messages = conversation.messages
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(turns) == len(marks):  # one each
            of_turn = dict(zip(turns, marks, strict=True))
            return [_Span(*of_turn[i], messages[i]) for i in conversation.supervised]
        spans = []
        for i in conversation.supervised:
            before, after = (len(self._render(conversation, n, where)[1]) for n in (i, i + 1))
            spans += [_Span(*mark, messages[i]) for mark in marks[before:after]]
        return spans

    def _differences(self, conversation: Conversation, text: str, where: str) -> list[_Span]:
        """Find what each supervised message adds to the rendering of those before it."""
        spans = []
        for i in conversation.supervised:
            head, _ = self._render(conversation, i, where, prompt=True)
            turn, _ = self._render(conversation, i + 1, where)
            stop = len(head) + len(self._without_end(turn[len(head) :]))
            if not (text.startswith(head) and turn.startswith(head) and text[:stop] == turn[:stop]):
                raise InputError(
                    f"{where}: the chat template has no {{% generation %}} marks, and writes "
                    f"messages 0 to {i} differently when more follow, so it cannot be told which "
                    "text is the assistant's. Supervise the last turn only with --supervise last, "
                    f"or give a template that has marks with {self.flag}."
                )
            spans.append(_Span(len(head), stop, conversation.messages[i]))
        return spans

    def _without_end(self, written: str) -> str:
        """Cut off the special tokens that end a turn, and the white space after them."""
        ends = "|".join(map(re.escape, self.ends))
        end = re.search(rf"(?:(?:{ends})\s*)+\Z", written)
        return written if end is None else written[: end.start()]

    def _content(self, text: str, span: _Span) -> tuple[int, int, str]:
        """Find (first character, character after the last, role) of a span's supervised text."""
        written = self._without_end(text[span.start : span.stop])
        start, stop = span.start, span.start + len(written)
        content = span.message.get("content", "")
        if isinstance(content, str) and written.strip() == content.strip():
            # Templates trim nothing, the head or both ends; white space beside that is theirs.
            for wanted in (content, content.lstrip(), content.strip()):
                place = written.rfind(wanted)
                if place >= 0:
                    start, stop = start + place, start + place + len(wanted)
                    break
        return start, stop, str(span.message["role"])

    def _render(
        self, conversation: Conversation, count: int, where: str, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render the first `count` messages, and find the spans that the template marks."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self.source if conversation.tools is None else self.tool_source
        has_marks = _MARK.search(source) is not None
        variables = {**self.variables, **conversation.kwargs}
        try:
            rendered: Any = render_jinja_template(  # its annotation is wrong
                [list(conversation.messages[:count])],
                tools=None if conversation.tools is None else list(conversation.tools),
                chat_template=(_CLOCK if "strftime_now" in source else "") + source,
                return_assistant_tokens_mask=has_marks,
                add_generation_prompt=prompt,
                **variables,
            )
        except Exception as error:  # a template's expressions raise anything
            # A variable of the user's, such as `chat_template`, may also clash with an argument.
            why = str(error).rstrip(".") if isinstance(error, TemplateError) else in_a_line(error)
            part = "" if count == len(conversation.messages) else f" (messages before {count})"
            raise InputError(
                f"{where}: the chat template rejects this conversation{part}: {why}. Change the "
                f"row, or give another template with {self.flag}."
            ) from error
        texts, marks = rendered
        return texts[0], list(marks[0]) if has_marks else []


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
        except json.JSONDecodeError as error:
            raise InputError(
                f"{flag} {text}: is not JSON ({error.msg} at column {error.colno}). Give an object "
                "such as '{\"enable_thinking\": false}'."
            ) from error
    if not isinstance(variables, Mapping):
        raise InputError(
            f"{flag} {text}: expected a JSON object, found {type(variables).__name__}. Give one "
            "such as '{\"enable_thinking\": false}'."
        )
    return dict(variables)


def _cut(text: str, spans: Sequence[tuple[int, int, str]]) -> tuple[Segment, ...]:
    """Cut text into context and supervised segments; drop empty context, keep empty turns."""
    segments, done = [], 0
    for start, stop, role in sorted(spans):
        if start > done:
            segments.append(Segment(text[done:start], False))
        segments.append(Segment(text[start:stop], True, role))
        done = stop
    if done < len(text):
        segments.append(Segment(text[done:], False))
    return tuple(segments)
