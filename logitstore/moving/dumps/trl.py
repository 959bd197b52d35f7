"""Read rows of what TRL's client of a vLLM server returns: `logprobs` and `logprob_token_ids`.

    generate                 prompt_ids, completion_ids, and the lists of the completion
    get_sequence_logprobs    the lists of the completion, and `actual_logprobs` of its tokens; with
                             the input_ids that were asked about, and labels or prompt_length

Lists are of the token itself, and padded with -inf. A file has a row for each sequence.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import F64, I64
from logitstore.moving.dumps.columns import paired, spread
from logitstore.moving.dumps.row import Dumped, flattened, integers, wanted
from logitstore.writing.lists.keyed import number_of
from logitstore.writing.lists.lists import reject_lengths

IDS = "logprob_token_ids"
_OWN = "actual_logprobs"


def read_sequence(row: Mapping[str, Any], where: str) -> Dumped:
    """Read a row.

    Raises:
        InputError: It does not name its tokens, or its lists do not belong to them.
    """
    lists = paired(row, IDS, "logprobs", where)
    ids, places = _tokens(row, where)
    if len(lists) != len(places):
        reject_lengths(where, "lists of a completion", len(lists), len(places))
    own = np.full(len(ids), np.nan)
    if row.get(_OWN) is not None:
        own[places] = _own(row, len(places), where)
    return Dumped(
        spread(lists, places, len(ids)),
        ids,
        np.isin(np.arange(len(ids)), places),
        own,
    )


def _tokens(row: Mapping[str, Any], where: str) -> tuple[I64, I64]:
    """Find the tokens of the whole sequence, and the places of those with a list."""
    if row.get("completion_ids") is not None:
        prompt, completion = (
            integers(row.get(name), f"{where}: {name}") for name in ("prompt_ids", "completion_ids")
        )
        ids = np.concatenate([prompt, completion])
        return ids, np.arange(len(prompt), len(ids))
    if row.get("input_ids") is None:
        raise InputError(
            f"{where}: does not say which tokens its lists are of. Add prompt_ids and "
            "completion_ids, or input_ids with labels or prompt_length."
        )
    ids = integers(row["input_ids"], f"{where}: input_ids")
    length = number_of(row.get("prompt_length"))
    if length is not None:
        return ids, np.arange(int(length), len(ids))
    is_wanted = wanted(row, ids, where)
    return ids, np.arange(len(ids)) if is_wanted is None else np.flatnonzero(is_wanted)


def _own(row: Mapping[str, Any], count: int, where: str) -> F64:
    """Read the log-probabilities of the tokens themselves; NaN (-inf there) where not known."""
    flat = flattened(row[_OWN], f"{where}: {_OWN}")
    try:
        own = np.asarray(flat.numbers(np.float64, np.nan), np.float64)
    except ValueError as e:
        raise InputError(f"{where}: {_OWN}: {e}. Fix or drop the row.") from None
    if len(own) != count:
        reject_lengths(where, f"numbers of {_OWN}", len(own), count)
    return np.where(np.isneginf(own), np.nan, own)
