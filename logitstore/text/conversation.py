"""Read a row that is a conversation: its messages, which of them are trained on, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from logitstore.errors import InputError

Supervise = Literal["all", "last"]
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A row that is a conversation, with the turns to train on.

    Attributes:
        messages: Dicts with a `role` and usually a `content`, in order.
        supervised: The messages (by number) whose text is trained on: assistant turns.
        tools: JSON schemas of the tools the assistant may call, if any.
        kwargs: Further variables of the template, of this row alone.
    """

    messages: tuple[Message, ...]
    supervised: tuple[int, ...]
    tools: tuple[Any, ...] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def choose(
        cls,
        messages: Sequence[Message],
        supervise: Supervise,
        *,
        first: int = 0,
        tools: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Supervise all assistant turns from message `first` on, or the last of them."""
        turns = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
        chosen = turns if supervise == "all" else turns[-1:]
        kept_tools = None if tools is None else tuple(tools)
        return cls(tuple(messages), tuple(chosen), kept_tools, dict(kwargs or {}))

    def to_json(self) -> str:
        """Encode as JSON, as a store has it; keys keep their order, since templates write them."""
        whole = {
            "messages": self.messages,
            "tools": self.tools,
            "kwargs": self.kwargs,
            "supervised": self.supervised,
        }
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Decode the JSON that :meth:`to_json` wrote."""
        whole = json.loads(text)
        tools = whole["tools"]
        return cls(
            tuple(whole["messages"]),
            tuple(whole["supervised"]),
            None if tools is None else tuple(tools),
            whole["kwargs"],
        )


def read_messages(value: Any, where: str) -> list[Message]:
    """Read messages as a dataset has them and check them; keys without a value are left out.

    Arrow gives every message the keys of all the others, so a missing value means an absent key.

    Raises:
        InputError: They are not dicts with a role, or hold something other than text.
    """
    messages = without_missing(parsed(value, where))
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise InputError(
            f"{where}: expected a list of messages, found {type(messages).__name__}. {_SHAPE}"
        )
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            actual = sorted(message) if isinstance(message, dict) else type(message).__name__
            raise InputError(
                f"{where}: message {number} is not a message; expected a dict with a role and a "
                f"content, found {actual}. {_SHAPE}"
            )
        _check_content(message.get("content"), f"{where}: message {number}")
    return messages


def without_missing(value: Any) -> Any:
    """Remove keys that hold None, at any depth."""
    if isinstance(value, dict):
        return {k: without_missing(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [without_missing(v) for v in value]
    return value


def parsed(value: Any, where: str) -> Any:
    """Decode a value that is JSON in a string, where a column could not hold the value itself.

    Raises:
        InputError: It is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: holds a string that is not JSON ({error.msg} at character {error.pos:,}). "
            "Give lists and dicts, or JSON of them."
        ) from error


_SHAPE = 'A row reads {"messages": [{"role": "user", "content": "…"}, …]}.'


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InputError(
            f"{where}: its content is {type(content).__name__}, expected text. {_SHAPE}"
        )
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise InputError(
                f"{where}: has a part of type {kind}, but only text is read. Leave images and "
                "sounds out, or drop the row."
            )
