"""Read rows of columns, in the layouts of axolotl's knowledge distillation.

    prepared    input_ids, labels, attention_mask, target_token_ids and target_logprobs: [T][k];
                target_mask: [T][k], zeros where there is no entry
    raw         logprobs: [T][k] of {"token": "token_id:123", "logprob": …} or {"token_id": …, …},
                or [T] of vLLM's {"123": {"logprob": …}, …}, or numbers beside target_token_ids:
                [T][k]; with input_ids (and labels, masks), or with messages, which the teacher's
                chat template writes

The raw lists of a conversation may be of its supervised tokens alone. A row of token ids may be
packed of several documents (position_ids, seq_lengths, attention_mask), as in a capture.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.moving.dumps.row import (
    Dumped,
    documents,
    flattened,
    integers,
    messages_of,
    wanted,
)
from logitstore.moving.dumps.token_names import TokenNames
from logitstore.moving.nested import Nested
from logitstore.writing.lists.keyed import keyed_lists
from logitstore.writing.lists.lists import Lists, int64s, reject_lengths

PREPARED = ("input_ids", "target_token_ids", "target_logprobs")
TARGETS = "target_token_ids"


def read_prepared(row: Mapping[str, Any], where: str) -> Dumped:
    """Read a row that was prepared for axolotl's trainer.

    Raises:
        InputError: Columns have unequal lengths, or hold something else.
    """
    ids = integers(row["input_ids"], f"{where}: input_ids")
    lists = paired(row, TARGETS, "target_logprobs", where)
    _check_tokens(lists, ids, "lists of target_logprobs", where)
    if row.get("target_mask") is not None:
        mask = flattened(row["target_mask"], f"{where}: target_mask")
        if len(mask.counts) < 2 or not np.array_equal(mask.counts[1], lists.counts):
            raise InputError(
                f"{where}: target_mask does not have the lengths of target_logprobs. Prepare the "
                "data again."
            )
        lists = lists.where(np.asarray(mask.numbers(np.int64, 0)) != 0)
    is_wanted = wanted(row, ids, where)
    return Dumped(lists, ids, is_wanted, documents=documents(row, len(ids), where))


def read_raw(
    row: Mapping[str, Any], names: TokenNames, where: str, *, logprobs: str, messages: str
) -> Dumped:
    """Read a row that a generator wrote.

    Args:
        row: The row.
        names: Finds the ids of entries that are named by text.
        where: The name of the row in messages.
        logprobs: The column of the lists.
        messages: The column of the conversation.

    Raises:
        InputError: Columns have unequal lengths, or hold something else.
    """
    lists = _raw_lists(row, names, where, logprobs)
    if row.get("input_ids") is None:
        conversation = messages_of(row.get(messages), where)
        if not conversation:
            raise InputError(
                f"{where}: has neither input_ids nor {messages}, so it cannot be told which tokens "
                f"the {counted(len(lists), 'list')} are of. Add one, or name the column of "
                "messages with --messages-column."
            )
        return Dumped(lists, messages=conversation)
    ids = integers(row["input_ids"], f"{where}: input_ids")
    is_wanted = wanted(row, ids, where)
    if is_wanted is not None and len(lists) == is_wanted.sum() != len(ids):
        lists = spread(lists, np.flatnonzero(is_wanted), len(ids))
    _check_tokens(lists, ids, f"lists of {logprobs}", where)
    return Dumped(lists, ids, is_wanted, documents=documents(row, len(ids), where))


def _raw_lists(row: Mapping[str, Any], names: TokenNames, where: str, column: str) -> Lists:
    if row.get(TARGETS) is not None:
        return paired(row, TARGETS, column, where)
    value = row[column]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return keyed_lists(value, f"{where}: {column}")[0]
    return _entries(value, names, f"{where}: {column}")


def spread(lists: Lists, places: I64, tokens: int) -> Lists:
    """Return lists of all tokens, given those of the tokens at `places`; others have none."""
    counts = np.zeros(tokens, np.int64)
    counts[places] = lists.counts
    return Lists(counts, lists.ids, lists.logprobs)


def _check_tokens(lists: Lists, ids: I64, what: str, where: str) -> None:
    if len(lists) != len(ids):
        reject_lengths(where, what, len(lists), len(ids))


def paired(row: Mapping[str, Any], targets: str, column: str, where: str) -> Lists:
    """Pair the ids and the log-probabilities of two columns of nested lists.

    Raises:
        InputError: They do not have as many, or hold something else.
    """
    ids = flattened(row[targets], f"{where}: {targets}")
    values = flattened(row[column], f"{where}: {column}")
    ids_T, values_T = _per_token(ids, targets, where), _per_token(values, column, where)
    if len(ids_T) != len(values_T):
        raise InputError(
            f"{where}: {counted(len(values_T), 'list')} of {column} for {len(ids_T):,} of "
            f"{targets}. Give "
            "both one list a token, or drop the row."
        )
    odd = np.flatnonzero(ids_T != values_T)
    if len(odd):
        t = int(odd[0])
        raise InputError(
            f"{where}, token {t:,}: {values_T[t]:,} log-probabilities for {ids_T[t]:,} ids. Give "
            "one an id, or drop the row."
        )
    try:
        logprobs = values.numbers(np.float64, np.nan)
        return Lists(values_T, int64s(ids.numbers(np.int64)), np.asarray(logprobs, np.float64))
    except ValueError as e:
        raise InputError(f"{where}: {targets} and {column}: {e}. Fix or drop the row.") from None


def _per_token(lists: Nested, column: str, where: str) -> I64:
    if len(lists.counts) == 2:
        return lists.counts[1]
    if len(lists.counts) == 1 and not len(lists.values):
        return np.zeros(int(lists.counts[0][0]), np.int64)
    raise InputError(f"{where}: {column} holds no list of lists. Give a list of entries a token.")


def _entries(value: Any, names: TokenNames, where: str) -> Lists:
    """Read lists of entries, each an object with a name or id and a log-probability."""
    items = flattened(value, where)
    counts = items.counts[1] if len(items.counts) == 2 else np.zeros(items.counts[0][0], np.int64)
    if not len(items.values):
        return Lists.none(len(counts))
    kind = items.values.type
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    key = next((name for name in ("token_id", "token") if name in fields), None)
    if len(items.counts) != 2 or key is None or "logprob" not in fields:
        raise InputError(
            f"{where}: expected lists of entries with a token_id (or token) and a logprob, found "
            f"{', '.join(sorted(fields)) or kind}. Name the column of such lists with "
            "--logprobs-column."
        )
    logprobs = Nested((), items.values.field("logprob")).numbers(np.float64, np.nan)
    tokens = items.values.field(key)
    return Lists(counts, _ids_of(tokens, counts, names, where), np.asarray(logprobs, np.float64))


def _ids_of(tokens: pa.Array, counts: I64, names: TokenNames, where: str) -> I64:
    if pa.types.is_integer(tokens.type) and not tokens.null_count:
        return int64s(tokens.to_numpy(zero_copy_only=False))
    owner = np.repeat(np.arange(len(counts)), counts)
    ids = [
        names.id_of(str(name), f"{where.rsplit(':', 1)[0]}, token {t:,}")
        for name, t in zip(tokens.to_pylist(), owner.tolist(), strict=True)
    ]
    return int64s(ids)
