"""Read the nested values of conversations: messages, tools, variables of the chat template."""

from __future__ import annotations

import json
from typing import Any

from logitstore.errors import InputError
from logitstore.text.conversation import parsed, read_messages, without_missing


def read_nested(
    value: Any, column: str, where: str, *, are_messages: bool, is_json: bool, is_exact: bool
) -> Any:
    """Read a nested value, and check what it is; None where it is missing.

    In a table of Arrow's every object has the keys of all others, so a missing value there means an
    absent key. JSON, in a file or in a string, says what it means. In a message itself a null is an
    absent key whatever says it.

    Args:
        value: As the dataset has it.
        column: Its column: of messages, `tools` or `chat_template_kwargs`.
        where: Names the row in messages.
        are_messages: Whether it is a list of messages.
        is_json: Whether it is JSON that our own reader of files wrote.
        is_exact: Whether its nulls are nulls.

    Raises:
        InputError: It is not JSON, or not what stands in such a column.
    """
    place = f"{where}: {column}"
    if is_json and value is not None:
        value = json.loads(value)
    is_exact |= isinstance(value, str)
    value = parsed(value or None, place)  # JSON in a string, of the user's own
    if are_messages:
        return None if value is None else read_messages(value, place, is_exact=is_exact)
    kind = list if column == "tools" else dict
    if value is not None and not isinstance(value, kind):
        raise InputError(
            f"{place}: expected a {kind.__name__} (or JSON of one), found {type(value).__name__}. "
            "Change it, or leave the column out."
        )
    return value if is_exact else without_missing(value)
