"""Decode JSON as it was meant, and refuse what two readers would read in two ways.

Python's `json` takes more than JSON has: of a key that an object has twice the last wins, and `NaN`
and `1e999` are numbers. Such a value would be another one for the next reader of a store, which
keeps conversations as JSON. Values that are nested deeper than any row of a dataset needs are
refused too, before a function of ours walks down into them.
"""

from __future__ import annotations

import json
import math
from typing import Any

from logitstore.errors import InputError

#: Objects and lists inside one another; schemas of tools, the deepest there are, have about twenty.
MOST_NESTED = 100
_COMPACT = (",", ":")


class Twice(dict[str, Any]):
    """An object in which a key stands twice.

    Attributes:
        key: The first such key.
    """

    key: str = ""


class Decoder:
    """Decodes JSON values, and tells which of them :func:`flaw_of` should look at."""

    def __init__(self) -> None:
        self._json = json.JSONDecoder(object_pairs_hook=self._object)
        self._has_twice = False

    def decode(self, text: str) -> tuple[Any, bool]:
        """Decode a text that is one value.

        Returns:
            The value; and whether it may be flawed: False is certain, and costs little.

        Raises:
            json.JSONDecodeError: It is not JSON.
            RecursionError, ValueError: It cannot be decoded; :func:`trouble` says why.
        """
        self._has_twice = False
        value = self._json.decode(text)
        return value, self._has_twice or _has_depth(text)

    def decode_from(self, text: str, start: int) -> tuple[Any, int, bool]:
        """Decode the value that begins at a character; returns, second, where it ends."""
        self._has_twice = False
        value, stop = self._json.raw_decode(text, start)
        return value, stop, self._has_twice or _has_depth(text[start:stop])

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        self._has_twice = True
        twice, keys = Twice(made), [key for key, _ in pairs]
        twice.key = next(key for i, key in enumerate(keys) if key in keys[:i])
        return twice


def decode(text: str, where: str) -> Any:
    """Decode one JSON value, and reject it if it is flawed.

    Args:
        text: The JSON.
        where: Names the place in messages.

    Raises:
        InputError: It is not JSON, or has what :func:`flaw_of` finds.
    """
    try:
        value, is_suspect = Decoder().decode(text)
        encode(value)  # numbers
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: holds a string that is not JSON ({error.msg} at character {error.pos:,}). "
            "Give lists and dicts, or JSON of them."
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where}: {trouble(error)}. Repair or drop the row.") from None
    flaw = flaw_of(value) if is_suspect else None
    if flaw is not None:
        raise InputError(f"{where}: {flaw}. Repair or drop the row.")
    return value


def trouble(error: Exception) -> str:
    """Say in words why a value cannot be decoded from JSON, or encoded as it."""
    if isinstance(error, RecursionError):
        return f"is nested deeper than {MOST_NESTED} levels"
    if isinstance(error, TypeError):
        return f"holds what JSON does not have ({error})"
    if "digits" in str(error):
        return "holds an integer of more than 4,300 digits"  # Python's own limit
    return "holds NaN or an infinite number, which JSON does not have"


def encode(value: Any) -> str:
    """Encode a value as compact JSON; keys keep their order, characters are not escaped.

    Raises:
        RecursionError, TypeError, ValueError: JSON does not have it; :func:`trouble` says why.
    """
    return json.dumps(value, ensure_ascii=False, separators=_COMPACT, allow_nan=False)


def flaw_of(value: Any, *, are_finite: bool = True) -> str | None:
    """Find what makes readers disagree about a JSON value, or is no JSON; None: nothing does.

    Args:
        value: The value.
        are_finite: Whether numbers must be finite. Other tools write what JSON does not have,
            `-Infinity`, for the logarithm of zero.
    """
    level, depth = [value], 0
    while level:
        if depth > MOST_NESTED:
            return f"is nested deeper than {MOST_NESTED} levels"
        below: list[Any] = []
        for each in level:
            if isinstance(each, Twice):
                return f"has the key {each.key!r} twice in one object"
            if isinstance(each, dict):
                below += each.values()
            elif isinstance(each, list):
                below += each
            elif are_finite and isinstance(each, float) and not math.isfinite(each):
                return "holds NaN or an infinite number, which JSON does not have"
        level, depth = below, depth + 1
    return None


def _has_depth(text: str) -> bool:
    return text.count("[") + text.count("{") > MOST_NESTED
