"""Read a row of token ids: which of its tokens are there, and which of them are to be trained on.

A row may be packed of several documents, none of which may look at another. It says so by
`position_ids` that begin again, by `seq_lengths`, or by `attention_mask`: zeros between tokens, or
another number a document. It is cut there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64, Bools
from logitstore.records import NO_LABEL
from logitstore.rows.kinds import MASKS
from logitstore.text.token_ids import TokenRow

_LENGTHS = "seq_lengths"
#: Columns that say which tokens are there, and which of them begin a document.
CUTS = ("attention_mask", "position_ids", _LENGTHS)
#: Each document is a sequence of the store, which costs memory and disk whatever its length: a
#: row of short ones may be short itself.
MOST_DOCUMENTS = 16_384


def documents_of(row: Mapping[str, list[Any] | None], where: str) -> list[TokenRow]:
    """Read the documents of a row, without padding (zeros of `attention_mask`).

    Args:
        row: The values of its columns, a list each.
        where: Names the row in messages.

    Returns:
        At least one document.

    Raises:
        InputError: Labels, masks, positions or lengths that do not belong to its tokens.
    """
    columns = {name: _integers(values, f"{where}: {name}") for name, values in row.items()}
    ids = columns["input_ids"]
    is_wanted = wanted_of(ids, columns, where)
    if is_wanted is None:
        is_wanted = np.ones(len(ids), np.bool_)
    return [TokenRow(ids[at], is_wanted[at]) for at in document_places(len(ids), columns, where)]


def wanted_of(ids: I64, columns: Mapping[str, I64], where: str) -> Bools | None:
    """Find the tokens to train on, by `labels` and masks: (T,); None if there are neither.

    Raises:
        InputError: They do not belong to these tokens.
    """
    _check_lengths(len(ids), columns, ("labels", *MASKS), where)
    wanted = [columns[mask] != 0 for mask in MASKS if mask in columns]
    if "labels" in columns:
        is_label: Bools = columns["labels"] != NO_LABEL
        _check_labels(ids, columns["labels"], is_label, where)
        wanted.append(is_label)
    return np.logical_and.reduce(wanted) if wanted else None


def document_places(count: int, columns: Mapping[str, I64], where: str) -> list[I64]:
    """Find the places of the tokens of each document of a row, without padding; at least one.

    Args:
        count: The tokens of the row, padding included.
        columns: Those of `CUTS` that it has.
        where: Names the row in messages.

    Raises:
        InputError: They do not belong to these tokens, or make too many documents.
    """
    _check_lengths(count, columns, ("attention_mask", "position_ids"), where)
    attention = columns.get("attention_mask", np.ones(count, np.int64))
    begins = begins_of(attention) | _begins_by_length(columns.get(_LENGTHS), attention, where)
    places = np.flatnonzero(attention)  # not padding
    begins = begins[places]
    if "position_ids" in columns:
        begins |= _begins_by_position(columns["position_ids"][places], begins, where)
    cuts = np.flatnonzero(begins)[1:]
    if len(cuts) >= MOST_DOCUMENTS:
        raise InputError(
            f"{where}: is packed of {counted(len(cuts) + 1, 'document')}, expected at most "
            f"{MOST_DOCUMENTS:,}. Cut it into rows of fewer, or drop it."
        )
    return np.split(places, cuts)


def begins_of(attention: I64) -> Bools:
    """Find the tokens that begin a document, by the attention mask of a row: (T,)."""
    before = np.concatenate([[0], attention[:-1]])
    begins: Bools = (attention != 0) & (attention != before)
    return begins


def _begins_by_length(lengths: I64 | None, attention: I64, where: str) -> Bools:
    """Find the tokens that begin a document, by the lengths of all documents: (T,)."""
    begins = np.zeros(len(attention), np.bool_)
    if lengths is None or not len(lengths):
        return begins
    tokens = np.flatnonzero(attention != 0)
    total = int(lengths.sum())
    if lengths.min() < 0 or total not in (len(attention), len(tokens)):
        raise InputError(
            f"{where}: {_LENGTHS} add up to {total:,}, but there are {len(attention):,} input_ids. "
            "Give the length of each document, or leave the column out."
        )
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    if total == len(attention):
        begins[starts] = True
    else:  # padding is not counted
        begins[tokens[starts]] = True
    return begins


def _begins_by_position(positions: I64, begins: Bools, where: str) -> Bools:
    """Find the tokens at which positions begin again: (T,).

    Raises:
        InputError: Positions that leave some out.
    """
    steps = np.diff(positions, prepend=positions[:1] - 1)
    skips = np.flatnonzero((steps > 1) & ~begins)
    if len(skips):
        t = int(skips[0])
        raise InputError(
            f"{where}: position_ids go from {positions[t - 1]:,} to {positions[t]:,}, expected "
            f"{positions[t - 1] + 1:,}, or a smaller number where another document begins. Repair "
            "them, or leave the column out."
        )
    begins_again: Bools = steps <= 0
    return begins_again


def _check_lengths(
    count: int, columns: Mapping[str, I64], names: Sequence[str], where: str
) -> None:
    for name in names:
        if name in columns and len(columns[name]) != count:
            raise InputError(
                f"{where}: {name} has {len(columns[name]):,} values, but there are {count:,} "
                "input_ids. Give one a token, or leave the column out."
            )


def _integers(values: list[Any] | None, where: str) -> I64:
    if values is not None and None in values:
        raise InputError(f"{where}: value {values.index(None):,} is missing. Drop the row.")
    return np.array(values or [], np.int64)


def _check_labels(ids: I64, labels: I64, is_wanted: Bools, where: str) -> None:
    wrong = np.flatnonzero((labels != ids) & is_wanted)
    if len(wrong):
        t = int(wrong[0])
        raise InputError(
            f"{where}: label {t:,} is {labels[t]}, expected the token itself ({ids[t]}) or "
            f"{NO_LABEL}. Labels lie on their own tokens here, as Trainer has them: do not "
            "shift them."
        )
