"""Represent a row of a dump, and read the values that all layouts share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from logitstore.errors import InputError
from logitstore.format.numpy_types import F64, I64, Bools
from logitstore.moving.nested import Nested, nested
from logitstore.rows.kinds import MASKS
from logitstore.rows.token_rows import CUTS, document_places, wanted_of
from logitstore.text.conversation import Message, read_messages, without_missing
from logitstore.text.strict_json import Decoder, flaw_of, trouble
from logitstore.writing.lists.lists import Lists

#: Columns of zeros and ones that say what is trained on; what is padding is left out before.
_MASKS = tuple(name for name in MASKS if name != "attention_mask")


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
        documents: Places of the tokens of each document that the row is packed of; None: one.
        is_rounded: Whether the lists were packed so that they may add up to a little over one.
    """

    lists: Lists
    token_ids: I64 | None = None
    is_wanted: Bools | None = None
    token_logprobs: F64 | None = None
    ranks: F64 | None = None
    messages: list[Message] | None = None
    answer_ids: I64 | None = None
    left_out: int = 0
    documents: tuple[I64, ...] | None = None
    is_rounded: bool = False

    def take(self, places: I64) -> "Dumped":
        """Return some of the tokens of a row of token ids, as a row."""
        assert self.token_ids is not None
        own, ranks, is_wanted = self.token_logprobs, self.ranks, self.is_wanted
        return Dumped(
            self.lists.take(places),
            self.token_ids[places],
            None if is_wanted is None else is_wanted[places],
            None if own is None else own[places],
            None if ranks is None else ranks[places],
        )


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


def columns_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> dict[str, I64]:
    """Read those of some columns of whole numbers that a row has.

    Raises:
        InputError: One holds something else.
    """
    return {
        name: integers(row[name], f"{where}: {name}") for name in names if row.get(name) is not None
    }


def wanted(row: Mapping[str, Any], ids: I64, where: str) -> Bools | None:
    """Return (T,) the tokens to train on by `labels` and masks; None if the row has neither.

    Raises:
        InputError: Labels or masks do not belong to these tokens.
    """
    return wanted_of(ids, columns_of(row, ("labels", *_MASKS), where), where)


def documents(row: Mapping[str, Any], tokens: int, where: str) -> tuple[I64, ...]:
    """Return the places of the tokens of each document of a row, without padding; at least one.

    Raises:
        InputError: What says where documents begin does not belong to these tokens.
    """
    return tuple(document_places(tokens, columns_of(row, CUTS, where), where))


def messages_of(value: Any, where: str) -> list[Message]:
    """Read a conversation as a capture does; none where it is missing.

    Raises:
        InputError: It is none.
    """
    is_arrow = isinstance(value, pa.Scalar)  # which gives each object the keys of all others
    flaw = None if is_arrow or isinstance(value, str) else flaw_of(value)
    if flaw is not None:
        raise InputError(f"{where}: messages {flaw}. Repair or drop the row.")
    return read_messages(value.as_py() if is_arrow else value, where, is_exact=not is_arrow)


def plain(value: Any, where: str) -> Any:
    """Convert to Python's own lists and dicts; JSON in a string is decoded.

    Raises:
        InputError: It is JSON that readers would read in two ways.
    """
    if isinstance(value, pa.Scalar):
        value = without_missing(value.as_py())
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        decoded, is_suspect = Decoder().decode(value)
    except ValueError:
        return value  # a text that begins like JSON
    except RecursionError as e:
        raise InputError(f"{where}: {trouble(e)}. Repair or drop the row.") from None
    flaw = flaw_of(decoded, are_finite=False) if is_suspect else None
    if flaw is not None:
        raise InputError(f"{where}: {flaw}. Repair or drop the row.")
    return decoded
