"""Represent a row of a dump, and read the values that all layouts share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from logitstore.errors import InputError
from logitstore.format.numpy_types import F64, I64, Bools
from logitstore.moving.dumps.lists import Lists
from logitstore.moving.nested import Nested, nested
from logitstore.text.conversation import Message
from logitstore.text.token_ids import NO_LABEL

#: Columns of zeros and ones, beside token ids.
MASKS = ("completion_mask", "assistant_masks")


@dataclass(frozen=True)
class Dumped:
    """A row of a dump, independent of its layout.

    Attributes:
        lists: One list for each token of the row, of its supervised part, or of its answer.
        token_ids: (T,) tokens of the row; None if the chat template has to render them.
        is_wanted: (T,) tokens to train on; None: all that have a list.
        token_logprobs: (lists,) log-probabilities of the tokens themselves; NaN where only a list
            may have it.
        ranks: (lists,) ranks of the tokens themselves in the vocabulary, from 1; NaN: not known.
        messages: The messages of a conversation, the answer included.
        answer_ids: The tokens that the teacher generated as the last message; lists are for these.
        left_out: Tokens that were generated only because a server must generate some.
    """

    lists: Lists
    token_ids: I64 | None = None
    is_wanted: Bools | None = None
    token_logprobs: F64 | None = None
    ranks: F64 | None = None
    messages: list[Message] | None = None
    answer_ids: I64 | None = None
    left_out: int = 0


def integers(value: Any, where: str) -> I64:
    """Read a list of whole numbers from Arrow or JSON.

    Raises:
        InputError: The value is something else.
    """
    flat = flattened(value, where)
    if len(flat.counts) > 1 or not (
        pa.types.is_integer(flat.values.type) or pa.types.is_boolean(flat.values.type)
    ):
        if len(flat.values):
            raise InputError(f"{where}: expected a list of whole numbers. Fix or drop the row.")
        return np.zeros(0, np.int64)
    try:
        return np.asarray(flat.numbers(np.int64), np.int64)
    except ValueError as e:
        raise InputError(f"{where}: {e}. Fix or drop the row.") from None


def flattened(value: Any, where: str) -> Nested:
    """Flatten a list of any depth from Arrow or JSON; counts[0] is (1,), its own length.

    Raises:
        InputError: The value is not a list, or holds values of several kinds.
    """
    if isinstance(value, pa.Scalar):
        value = value.values if value.is_valid and hasattr(value, "values") else []
    try:
        column = value if isinstance(value, pa.Array) else pa.array(value or [])
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as e:
        reason = str(e).splitlines()[0].rstrip(".")
        raise InputError(f"{where}: cannot be read as lists ({reason}). Fix the row.") from None
    items = nested(column)
    return Nested((np.array([len(column)]), *items.counts), items.values)


def wanted(row: Mapping[str, Any], ids: I64, where: str) -> Bools | None:
    """Return (T,) the tokens to train on by `labels` and masks; None if the row has neither.

    Raises:
        InputError: Labels or masks do not belong to these tokens.
    """
    wanted_T: Bools | None = None
    for name in ("labels", *MASKS):
        if row.get(name) is None:
            continue
        values = integers(row[name], f"{where}: {name}")
        if len(values) != len(ids):
            raise InputError(
                f"{where}: {name} has {len(values):,} values for {len(ids):,} tokens. Give one a "
                "token, or leave the column out."
            )
        is_on = values != (NO_LABEL if name == "labels" else 0)
        if name == "labels":
            _check_labels(ids, values, is_on, where)
        wanted_T = is_on if wanted_T is None else wanted_T & is_on
    return wanted_T


def _check_labels(ids: I64, labels: I64, is_on: Bools, where: str) -> None:
    wrong = np.flatnonzero((labels != ids) & is_on)
    if len(wrong):
        t = int(wrong[0])
        raise InputError(
            f"{where}, token {t:,}: its label is {labels[t]}, expected the token itself "
            f"({ids[t]}) or {NO_LABEL}. Labels lie on their own tokens: do not shift them."
        )


def number_of(value: Any) -> float | None:
    """Return a number of JSON; None for anything else, or where no float is so large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def plain(value: Any) -> Any:
    """Convert to Python's own lists and dicts; JSON in a string is parsed."""
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
