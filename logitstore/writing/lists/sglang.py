"""Read responses of SGLang's `/generate`: lists of [log-probability, id, text] in `meta_info`.

    input_token_logprobs    the tokens of the prompt from `logprob_start_len` on; the first has no
                            log-probability
    input_top_logprobs      their lists, null for the first
    output_token_logprobs   the tokens that were generated
    output_top_logprobs     their lists

The ids of the tokens are in the response; only a prompt of which it has a part, or none, is needed
beside it, as `input_ids`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import F64, I64
from logitstore.writing.lists.keyed import number_of
from logitstore.writing.lists.lists import Lists, int64s, reject_lengths


class Listed(NamedTuple):
    """A stretch of tokens with their lists.

    Attributes:
        lists: One list for each token; empty where there is none.
        own: Log-probabilities of the tokens themselves; NaN where they are not known.
        ids: The tokens.
    """

    lists: Lists
    own: F64
    ids: I64


def prompt_of(meta: Mapping[str, Any], where: str) -> Listed | None:
    """Read what is said of the prompt; None if no list is.

    Raises:
        InputError: It is not what SGLang writes.
    """
    return _listed(meta, "input", where)


def output_of(meta: Mapping[str, Any], where: str) -> Listed | None:
    """Read what is said of the generated tokens; None if no list is.

    Raises:
        InputError: It is not what SGLang writes.
    """
    return _listed(meta, "output", where)


def _listed(meta: Mapping[str, Any], part: str, where: str) -> Listed | None:
    names = (f"{part}_token_logprobs", f"{part}_top_logprobs")
    tokens, tops = (meta.get(name) or [] for name in names)
    if not isinstance(tokens, list) or not isinstance(tops, list):
        raise InputError(f"{where}: {names[0]} or {names[1]} is no list. Drop the row.")
    if not any(tops):
        return None
    if len(tokens) != len(tops):
        reject_lengths(where, f"lists of {names[1]}", len(tops), len(tokens))
    own, ids = _entries(tokens, f"{where}: {names[0]}", has_unknown=True)
    counts: list[int] = []
    entries: list[Any] = []
    for t, top in enumerate(tops):
        if not isinstance(top, list | None):
            raise InputError(f"{where}: {names[1]}, token {t:,}: is no list. Drop the row.")
        counts.append(len(top or ()))
        entries += top or ()
    logprobs, top_ids = _entries(entries, f"{where}: {names[1]}")
    return Listed(Lists(int64s(counts), top_ids, logprobs), own, ids)


def _entries(values: list[Any], where: str, *, has_unknown: bool = False) -> tuple[F64, I64]:
    """Read [log-probability, id, …] of each; null is a log-probability that is not known."""
    logprobs, ids = np.full(len(values), np.nan), np.zeros(len(values), np.int64)
    for n, value in enumerate(values):
        is_entry = isinstance(value, list) and len(value) >= 2
        number, i = (number_of(v) for v in value[:2]) if is_entry else (None, None)
        is_unknown = is_entry and has_unknown and value[0] is None
        if i is None or not i.is_integer() or (number is None and not is_unknown):
            raise InputError(
                f"{where}: expected entries such as [-0.1, 123, null], found {str(value)[:40]!r}. "
                "Fix or drop the row."
            )
        ids[n] = int(i)  # Parquet has one type for all of a list
        if number is not None:
            logprobs[n] = number
    return logprobs, ids
