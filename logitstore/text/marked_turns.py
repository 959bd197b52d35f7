"""Find the assistant's text by a template's marks, or by what each turn adds to the rendering.

These are for templates that look into the texts that they write, so that :mod:`sentinels` cannot
say where these are. What the template writes for the content of an assistant's turn is supervised:
the characters inside its `{% generation %}` marks if it has them, else what the turn adds to the
rendering of the messages before it; in both cases without the end of the turn, and without white
space that only the template puts around the content.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from logitstore.errors import InputError
from logitstore.text.conversation import Conversation
from logitstore.text.slots import calls_of, named
from logitstore.text.turns import Piece, Rendering, SupervisedText

Marks = Sequence[tuple[int, int]]


class _Span(NamedTuple):
    """A stretch of the rendered text, in characters, and the message that it belongs to."""

    start: int
    stop: int
    message: int


class Prefixes(NamedTuple):
    """How the first messages of the conversation at hand are written.

    Attributes:
        before: Renders the messages before a number; True: up to where the assistant begins.
        marks: Renders them, and returns the spans that the template marks.
        ends: The special tokens that end a turn, as they are spelt.
        flag: The flag that names another template, for messages.
    """

    before: Callable[[int, bool], str]
    marks: Callable[[int], Marks]
    ends: tuple[str, ...]
    flag: str


def by_marks(
    text: str,
    marks: Marks,
    conversation: Conversation,
    prefixes: Prefixes,
    mode: SupervisedText,
    where: str,
) -> Rendering:
    """Find the supervised text by marks, or by differences where there are none.

    Args:
        text: The conversation, rendered.
        marks: The spans that the template marks.
        conversation: The conversation.
        prefixes: Renders its first messages.
        mode: What is supervised of a turn.
        where: Names the row in messages.

    Raises:
        InputError: There are no marks, and earlier messages are written differently when others
            follow them.
    """
    spans = _marked(conversation, marks, prefixes) if marks else None
    if spans is None:
        spans = _differences(conversation, text, prefixes, where)
    unwritten = _unwritten_calls(text, spans, conversation)
    pieces = (
        _content(text, span, conversation, prefixes.ends, mode)
        for span in spans
        if span.message not in unwritten
    )
    return Rendering(text, tuple(pieces), unwritten)


def _marked(conversation: Conversation, marks: Marks, prefixes: Prefixes) -> list[_Span]:
    """Find the marks of the supervised messages."""
    messages = conversation.messages
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(turns) == len(marks):  # one each
        of_turn = dict(zip(turns, marks, strict=True))
        return [_Span(*of_turn[i], i) for i in conversation.supervised]
    spans = []
    for i in conversation.supervised:
        before, after = (len(prefixes.marks(n)) for n in (i, i + 1))
        spans += [_Span(*mark, i) for mark in marks[before:after]]
    return spans


def _differences(
    conversation: Conversation, text: str, prefixes: Prefixes, where: str
) -> list[_Span]:
    """Find what each supervised message adds to the rendering of those before it."""
    spans = []
    for i in conversation.supervised:
        head, turn = prefixes.before(i, True), prefixes.before(i + 1, False)
        stop = len(head) + len(_without_end(turn[len(head) :], prefixes.ends))
        if not (text.startswith(head) and turn.startswith(head) and text[:stop] == turn[:stop]):
            raise InputError(
                f"{where}: the chat template looks into what messages say, has no "
                f"{{% generation %}} marks, and writes messages 0 to {i} differently when more "
                "follow, so it cannot be told which text is the assistant's. Supervise the last "
                "turn only with --supervise last, or give a template that has marks with "
                f"{prefixes.flag}."
            )
        spans.append(_Span(len(head), stop, i))
    return spans


def _unwritten_calls(
    text: str, spans: Sequence[_Span], conversation: Conversation
) -> tuple[int, ...]:
    """List the messages with tool calls whose names are not in what is written of them."""
    written = dict.fromkeys(conversation.supervised, "")
    for span in spans:
        written[span.message] += text[span.start : span.stop]
    calls = {i: map(named, calls_of(conversation.messages[i])) for i in written}
    return tuple(
        i
        for i, found in calls.items()
        if not all(each is not None and each[1] in written[i] for each in found)
    )


def _without_end(written: str, ends: Sequence[str]) -> str:
    """Cut off the special tokens that end a turn, and the white space after them."""
    kept = len(written)
    while True:
        stop = kept
        while stop and written[stop - 1].isspace():
            stop -= 1
        end = next((end for end in ends if end and written.endswith(end, 0, stop)), None)
        if end is None:
            return written[:kept]
        kept = stop - len(end)


def _content(
    text: str,
    span: _Span,
    conversation: Conversation,
    ends: Sequence[str],
    mode: SupervisedText,
) -> Piece:
    """Find what of a span is supervised."""
    message = conversation.messages[span.message]
    written = _without_end(text[span.start : span.stop], ends)
    start, stop = span.start, span.start + len(written)
    content = message.get("content", "")
    if mode == "content" and isinstance(content, str) and written.strip() == content.strip():
        # Templates trim nothing, the head or both ends; white space beside that is theirs.
        for wanted in (content, content.lstrip(), content.strip()):
            place = written.rfind(wanted)
            if place >= 0:
                start, stop = start + place, start + place + len(wanted)
                break
    return Piece(start, stop, span.message, str(message["role"]))
