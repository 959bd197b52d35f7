"""List the texts of a conversation that a chat template is given, and put others in their place.

A *slot* is a text of a supervised message: its content, what it thought before it answered, the
name of a tool that it calls. Contents may be lists of parts, and a content may bring its thoughts
along between tags; then it has a slot each.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from logitstore.text.conversation import Message
from logitstore.text.ends import CALLS, THINKING

#: Keys of a message with what it thought. Of several, a template writes one.
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
OPEN_TAG, CLOSE_TAG = "<think>", "</think>"


class Slot(NamedTuple):
    """A text that a template is given.

    Attributes:
        message: The number of its message.
        role: The message's, `thinking` or `tool_calls`.
        text: The text.
    """

    message: int
    role: str
    text: str


class Holder(NamedTuple):
    """A string in a conversation that holds slots.

    Attributes:
        path: Message number, then the keys to the string.
        parts: The string in pieces: slots, and text that stays as it is.
    """

    path: tuple[int | str, ...]
    parts: tuple[str | Slot, ...]


def holders(
    messages: Sequence[Message], supervised: Sequence[int], *, splits_thoughts: bool = False
) -> list[Holder]:
    """List the strings of supervised messages that hold slots.

    Args:
        messages: The conversation.
        supervised: Numbers of the messages.
        splits_thoughts: Whether `<think>…</think>` at the head of a content is a slot of its own.
    """
    return [holder for i in supervised for holder in _of_message(i, messages[i], splits_thoughts)]


def calls_of(message: Message) -> list[Any]:
    """List the tool calls of a message; none where it has no such list."""
    calls = message.get("tool_calls")
    return list(calls) if isinstance(calls, list | tuple) else []


def named(call: Any) -> tuple[tuple[str, ...], str] | None:
    """Find the name of the tool that is called, and the keys to it; None if there is none."""
    for path in (("function", "name"), ("name",)):
        value = call
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            return path, value
    return None


def texts_of(message: Message) -> list[tuple[tuple[int | str, ...], str]]:
    """List the texts that are a message's content, each with the keys to it."""
    content = message.get("content")
    if isinstance(content, str):
        return [(("content",), content)]
    if not isinstance(content, list | tuple):
        return []
    return [
        (("content", k, "text"), part["text"])
        for k, part in enumerate(content)
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]


def filled(
    messages: Sequence[Message], holders: Sequence[Holder], values: Sequence[str]
) -> list[Message]:
    """Copy a conversation with other texts in its slots, one for each."""
    left = iter(values)
    copied = copy.deepcopy(list(messages))
    for holder in holders:
        written = "".join(next(left) if isinstance(p, Slot) else p for p in holder.parts)
        target: Any = copied
        for key in holder.path[:-1]:
            target = target[key]
        target[holder.path[-1]] = written
    return copied


def _of_message(i: int, message: Message, splits_thoughts: bool) -> Iterator[Holder]:
    for key in THOUGHTS:
        thought = message.get(key)
        if isinstance(thought, str) and thought.strip():  # templates test whether there is one
            yield Holder((i, key), (Slot(i, THINKING, thought),))
    calls, texts = calls_of(message), texts_of(message)
    role = str(message["role"])
    for path, text in texts:
        if calls and not text.strip():
            continue  # templates test whether something is said beside the calls
        yield Holder((i, *path), _parts(i, role, text, splits_thoughts))
    for k, call in enumerate(calls):
        if found := named(call):
            path, name = found
            yield Holder((i, "tool_calls", k, *path), (Slot(i, CALLS, name),))


def _parts(i: int, role: str, text: str, splits_thoughts: bool) -> tuple[str | Slot, ...]:
    opened = len(text) - len(text.lstrip()) + len(OPEN_TAG)
    closed = text.find(CLOSE_TAG, opened)
    if not (splits_thoughts and text.lstrip().startswith(OPEN_TAG) and closed >= 0):
        return (Slot(i, role, text),)
    within, answer = text[opened:closed], text[closed + len(CLOSE_TAG) :].lstrip()
    thought = within.strip()
    opening = text[: opened + len(within) - len(within.lstrip())]
    if not thought:
        return (text[: len(text) - len(answer)], Slot(i, role, answer))
    closing = text[len(opening) + len(thought) : len(text) - len(answer)]
    return (opening, Slot(i, THINKING, thought), closing, Slot(i, role, answer))
