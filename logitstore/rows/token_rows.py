"""Read a row of token ids: which of its tokens are there, and which of them are to be trained on.

A row may be packed of several documents, none of which may look at another. It says so by
`position_ids` that begin again, by `seq_lengths`, or by `attention_mask`: zeros between tokens, or
another number a document. It is cut there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64, Bools
from logitstore.rows.kinds import MASKS
from logitstore.text.token_ids import NO_LABEL, TokenRow

_LENGTHS = "seq_lengths"


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
    lengths = columns.pop(_LENGTHS, None)
    for name, values in columns.items():
        if len(values) != len(ids):
            raise InputError(
                f"{where}: {name} has {len(values):,} values, but there are {len(ids):,} "
                "input_ids. Give one a token, or leave the column out."
            )
    is_wanted = np.ones(len(ids), np.bool_)
    if "labels" in columns:
        is_wanted &= columns["labels"] != NO_LABEL
        _check_labels(ids, columns["labels"], is_wanted, where)
    for mask in set(MASKS) & set(columns):
        is_wanted &= columns[mask] != 0
    attention = columns.get("attention_mask", np.ones_like(ids))
    begins = begins_of(attention) | _begins_by_length(lengths, attention, where)
    is_token = attention != 0  # not padding
    positions = columns.get("position_ids")
    begins = begins[is_token]
    if positions is not None:
        begins |= _begins_by_position(positions[is_token], begins, where)
    cuts = np.flatnonzero(begins)[1:]
    parts = zip(np.split(ids[is_token], cuts), np.split(is_wanted[is_token], cuts), strict=True)
    return [TokenRow(*part) for part in parts]


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
