"""Read lists that are keyed by token id, as vLLM's are: {"123": {"logprob": -0.1, "rank": 1}}."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import F64, I64
from logitstore.writing.lists.lists import Lists, int64s

_MAX_ID_DIGITS = 18


def keyed_lists(values: Sequence[Any], where: str, tokens: I64 | None = None) -> tuple[Lists, F64]:
    """Read keyed lists, and the rank of each token itself where its list has it.

    Args:
        values: (T,) one list for each token; null for a token without a list.
        where: The name of the lists in messages.
        tokens: (T,) the tokens themselves, if known.

    Returns:
        The lists, and (T,) the ranks of the tokens themselves, NaN where they are not known.

    Raises:
        InputError: A key is not an id, or a value is not a log-probability.
    """
    counts, ids, logprobs = [], [], []
    ranks = np.full(len(values), np.nan)
    for t, entries in enumerate(values):
        if entries is not None and not isinstance(entries, Mapping):
            raise _malformed(f"{where}, token {t:,}", entries)
        counts.append(len(entries or ()))
        for key, entry in (entries or {}).items():
            i = _id(key, f"{where}, token {t:,}")
            ids.append(i)
            logprobs.append(_logprob(entry, f"{where}, token {t:,}"))
            if tokens is not None and tokens[t] == i and isinstance(entry, Mapping):
                rank = number_of(entry.get("rank"))
                ranks[t] = np.nan if rank is None else rank
    return Lists(int64s(counts), int64s(ids), np.array(logprobs, np.float64)), ranks


def number_of(value: Any) -> float | None:
    """Return a number of JSON; None for anything else, or where no float is so large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _id(key: Any, where: str) -> int:
    text = str(key)
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS):
        raise InputError(f"{where}: expected token ids as keys, found {text[:40]!r}. Drop the row.")
    return int(text)


def _logprob(entry: Any, where: str) -> float:
    value = entry.get("logprob") if isinstance(entry, Mapping) else entry
    number = number_of(value)
    if number is None:
        raise _malformed(where, entry)
    return number


def _malformed(where: str, value: Any) -> InputError:
    return InputError(
        f'{where}: expected entries such as {{"123": {{"logprob": -0.1}}}}, found '
        f"{str(value)[:40]!r}. Fix or drop the row."
    )
