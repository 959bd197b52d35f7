"""Match what the teacher alone sees of a conversation with what the student sees of it."""

from __future__ import annotations

from typing import Any

from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.rows.dataset import Dialogue
from logitstore.text.conversation import ASSISTANT, Conversation, Message, is_trained_on

#: What a message says that a template may write.
_SAID = ("content", "reasoning_content", "thinking", "tool_calls")
_SHOWN_CHARACTERS = 40


def private_conversation(own: Conversation, theirs: Dialogue, where: str) -> Conversation:
    """Choose the turns of the teacher's conversation that stand for the student's supervised ones.

    They are its last. Those before them (examples, say) are context.

    Args:
        own: The student's conversation.
        theirs: What the teacher sees.
        where: Names the row in messages.

    Raises:
        InputError: Their answers are not the same.
    """
    turns = [
        i
        for i in range(theirs.first, len(theirs.messages))
        if theirs.messages[i]["role"] == ASSISTANT
        and is_trained_on(theirs.messages[i]) is not False
    ]
    count = len(own.supervised)
    if len(turns) < count:
        raise InputError(
            f"{where}: the teacher's messages have {counted(len(turns), 'turn')} of the assistant, "
            f"but the student learns {count}. Its context may be another, but its answers must be "
            "the same."
        )
    chosen = turns[len(turns) - count :]
    for theirs_i, own_i in zip(chosen, own.supervised, strict=True):
        a, b = theirs.messages[theirs_i], own.messages[own_i]
        if _said(a) != _said(b):
            raise InputError(
                f"{where}: message {theirs_i} of the teacher's is another answer than message "
                f"{own_i} of the student's ({_shown(a)} and {_shown(b)}). Give the teacher another "
                "context if you like, but the same answers."
            )
    kept_tools = None if theirs.tools is None else tuple(theirs.tools)
    return Conversation(tuple(theirs.messages), tuple(chosen), kept_tools, theirs.kwargs)


def _said(message: Message) -> list[Any]:
    return [message.get(key) for key in _SAID]


def _shown(message: Message) -> str:
    text = repr(message.get("content"))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
