"""Read a row that is a conversation: its messages, which of them are trained on, and its JSON.

A message has a `role` and a `content`, or, as ShareGPT writes it, `from` and `value`. It may say
whether it is trained on: `weight` (0 or 1), `train` or `loss` (false or true).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from logitstore.errors import InputError
from logitstore.text import strict_json

Supervise = Literal["all", "last"]
Message = dict[str, Any]

ASSISTANT = "assistant"
#: Keys with which a message says whether it is trained on.
SAYS = ("weight", "train", "loss")
#: Who speaks in ShareGPT's `from`. TRL renames its keys and leaves these names, which no chat
#: template knows; here they get the names that they have everywhere else.
_SHAREGPT = {"human": "user", "gpt": ASSISTANT}
_ROLES = ("system", "developer", "user", ASSISTANT, "tool", "function")
#: Names that mean one of those; whoever finds one in `role` would lose the turn without a word.
_MEANT = {
    "human": "user",
    **dict.fromkeys(("gpt", "bot", "model", "ai", "chatbot", "chatgpt"), ASSISTANT),
    **{role: role for role in _ROLES},
}


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
        """Supervise all assistant turns from message `first` on, or the last of them.

        One that says that it is not trained on is context.
        """
        turns = [i for i in range(first, len(messages)) if messages[i]["role"] == ASSISTANT]
        chosen = turns if supervise == "all" else turns[-1:]
        kept = (i for i in chosen if is_trained_on(messages[i]) is not False)
        kept_tools = None if tools is None else tuple(tools)
        return cls(tuple(messages), tuple(kept), kept_tools, dict(kwargs or {}))

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
    def from_json(cls, text: str, where: str) -> Self:
        """Decode the JSON that :meth:`to_json` wrote; `where` names the row in messages.

        Raises:
            InputError: It is not JSON of a conversation.
        """
        try:
            whole = json.loads(text)
            messages, supervised, tools, kwargs = (
                whole[name] for name in ("messages", "supervised", "tools", "kwargs")
            )
        except (ValueError, RecursionError, KeyError, TypeError):
            messages = supervised = tools = kwargs = None
        if not (
            isinstance(messages, list)
            and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages)
            and isinstance(supervised, list)
            and all(type(i) is int and 0 <= i < len(messages) for i in supervised)
            and isinstance(tools, list | None)
            and isinstance(kwargs, dict)
        ):
            raise InputError(
                f"{where}: the store has the messages of this row in JSON that is no conversation. "
                "Capture the dataset again with this version."
            )
        for number, message in enumerate(messages):
            _check_content(message.get("content"), f"{where}: message {number}")
        return cls(
            tuple(messages), tuple(supervised), None if tools is None else tuple(tools), kwargs
        )


def read_messages(value: Any, where: str, *, is_exact: bool = False) -> list[Message]:
    """Read messages as a dataset has them and check them; keys without a value are left out.

    Args:
        value: A list of messages, or JSON of one.
        where: Names the row in messages.
        is_exact: Whether a null inside a message's values is one. Arrow gives every object the
            keys of all the others, so where it made the value, a null means an absent key.

    Raises:
        InputError: They are not dicts with a role, hold something other than text, or say of
            themselves what cannot be obeyed.
    """
    messages = parsed(value, where)
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise InputError(
            f"{where}: expected a list of messages, found {type(messages).__name__}. {_SHAPE}"
        )
    return [
        _message(message, is_exact=is_exact, where=f"{where}: message {number}")
        for number, message in enumerate(messages)
    ]


def is_trained_on(message: Message) -> bool | None:
    """Tell what a message that has been read says of being trained on; None: nothing."""
    said = [bool(message[key]) for key in SAYS if key in message]
    return said[0] if said else None


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
    return strict_json.decode(value, where) if isinstance(value, str) else value


_SHAPE = 'A row reads {"messages": [{"role": "user", "content": "…"}, …]}.'


def _message(given: Any, *, is_exact: bool, where: str) -> Message:
    """Read one message: with a role that chat templates know, and without keys that hold None."""
    if not isinstance(given, dict):
        raise _no_message(where, type(given).__name__)
    kept = {k: v for k, v in given.items() if v is not None}
    message: Message = kept if is_exact else without_missing(kept)
    is_sharegpt = "role" not in message and "from" in message
    if is_sharegpt:
        names = {"from": "role", **({} if "content" in message else {"value": "content"})}
        message = {names.get(key, key): value for key, value in message.items()}
    role = message.get("role")
    if not isinstance(role, str):
        raise _no_message(where, sorted(given))
    if is_sharegpt:
        role = message["role"] = _SHAREGPT.get(role, role)
    _check_role(role, is_sharegpt, where)
    _check_content(message.get("content"), where)
    _check_says(message, where)
    return message


def _no_message(where: str, found: Any) -> InputError:
    return InputError(
        f"{where} is not a message; expected a dict with a role and a content, found "
        f"{found!s:.80}. {_SHAPE}"
    )


def _check_role(role: str, is_sharegpt: bool, where: str) -> None:
    """Reject a role that means one of the known by another name: its turn would be lost."""
    meant = _MEANT.get(role.lower())
    if role in _ROLES or (meant is None and not is_sharegpt):
        return  # a template may know roles of its own
    advice = f"Write {meant!r}." if meant else "Rename it, or drop the row."
    raise InputError(
        f"{where}: has the role {role!r:.40}, expected user, assistant, system or tool, which chat "
        f"templates know. {advice}"
    )


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


def _check_says(message: Message, where: str) -> None:
    """Reject what a message says of being trained on where it cannot be obeyed."""
    said = {key: message[key] for key in SAYS if key in message}
    if not said:
        return
    for key, value in said.items():
        if isinstance(value, int | float) and value in (0, 1):
            continue
        if isinstance(value, int | float):
            why = "a turn is trained on or not: expected 0 or 1. Round it"
        else:
            why = "expected true or false, 1 or 0. Change it"
        raise InputError(f"{where}: has {key} {value!r:.40}, but {why}, or leave {key} out.")
    if len({bool(value) for value in said.values()}) > 1:
        listed = " and ".join(f"{key} {value!r}" for key, value in said.items())
        raise InputError(f"{where}: has {listed}, which say the opposite. Leave one out.")
    asked = [key for key in ("train", "loss") if message.get(key)]
    if asked and message["role"] != ASSISTANT:
        raise InputError(
            f"{where}: has {asked[0]} {message[asked[0]]}, but only turns of the assistant are "
            f"trained on, and this one's role is {message['role']!r:.40}. Leave {asked[0]} out."
        )
