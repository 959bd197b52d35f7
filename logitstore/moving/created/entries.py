"""Make records of entries: ids and log-probabilities, most with the tail beyond them.

Shape legend: T = tokens of the row, n = records, k = entries given.
"""

from dataclasses import replace

import numpy as np

from logitstore.errors import InputError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.numpy_types import F64, I64, Array
from logitstore.format.spec import StoreSpec
from logitstore.moving.created import arrays
from logitstore.moving.created.fits import Fits
from logitstore.moving.created.given import Given
from logitstore.moving.created.texts import Tokens
from logitstore.moving.dumps import records
from logitstore.moving.dumps.columns import spread
from logitstore.moving.dumps.locate import Placed
from logitstore.writing.lists.lists import SUM_TOLERANCE, Lists, check_own, checked, first, sums


def of_entries(
    given: Given,
    at: I64,
    tokens: Tokens,
    spec: StoreSpec,
    top_k: int,
    fits: Fits,
    where: str,
) -> EncodedRecords | None:
    """Check entries, cut them to the first `top_k`, and encode them.

    Args:
        given: The arrays.
        at: (n,) the row of each record.
        tokens: The tokens of the row.
        spec: Of the store.
        top_k: Entries of a record at most.
        fits: Counts what only many rows can tell.
        where: Names the row in messages.

    Raises:
        InputError: Something is wrong with an entry; names the token.
    """
    placed = _placed(given, at, tokens, spec, where)
    fits.count_lists(placed.lists, tokens, spec.vocab_size)
    before = sums(placed.lists)
    placed = records.finished(placed, spec.vocab_size, where)
    placed = replace(placed, lists=first(placed.lists, top_k))
    tail = entropy = None
    if given.tail is not None:
        tail = _tail(arrays.doubles(given.tail, f"{where}: tail")[at], before, where)
        tail = np.logaddexp(tail, _log(before - sums(placed.lists)))  # of what is not kept
    if given.entropy is not None:
        entropy = arrays.doubles(given.entropy, f"{where}: entropy")[at]
        _check_each(entropy >= 0, entropy, "an entropy that is none", where)
    return records.encoded(placed, spec, tail=tail, entropy=entropy)


def _placed(given: Given, at: I64, tokens: Tokens, spec: StoreSpec, where: str) -> Placed:
    """Check and sort entries, and put them at their tokens' places."""
    all_T = spread(_lists(given, at, where), tokens.places, len(tokens.ids))
    lists = checked(all_T, spec.vocab_size, where)[0].take(tokens.places)
    empty = np.flatnonzero(lists.counts == 0)
    if len(empty):
        raise InputError(
            f"{where}, token {int(tokens.places[empty[0]]):,}: has no entries. Give some for every "
            "token that is trained on, or keep the row without records with skip()."
        )
    unknown = own = np.full(len(at), np.nan)
    if given.token_logprob is not None:
        own = arrays.doubles(given.token_logprob, f"{where}: token_logprob")[at]
        check_own(own, where)
    return Placed(
        tokens.line,
        tokens.ids[tokens.places],
        tokens.byte_starts,
        tokens.byte_lengths,
        lists,
        own,
        unknown,
        len(at),
    )


def _lists(given: Given, at: I64, where: str) -> Lists:
    """Take the entries of each record, however many it has; -inf is padding."""
    pairs = (
        [
            (
                arrays.integers(given.ids[t], f"{where}: ids"),
                arrays.doubles(row, f"{where}: logprobs"),
            )
            for t, row in ((int(t), given.logprobs[int(t)]) for t in at)
        ]
        if _is_ragged(given)
        else _of_matrices(given, at, where)
    )
    for n, (ids, logprobs) in enumerate(pairs):
        if ids.ndim != 1 or ids.shape != logprobs.shape:
            raise InputError(
                f"{where}: logprobs[{int(at[n])}]: {logprobs.size:,} log-probabilities for "
                f"{ids.size:,} ids. Give one an id."
            )
    whole = Lists(
        np.array([len(ids) for ids, _ in pairs], np.int64),
        np.concatenate([ids for ids, _ in pairs]),
        np.concatenate([logprobs for _, logprobs in pairs]),
    )
    return whole.where(whole.logprobs != -np.inf)  # whatever id the padding has


def _is_ragged(given: Given) -> bool:
    return any(arrays.shape_of(values) is None for values in (given.ids, given.logprobs))


def _of_matrices(given: Given, at: I64, where: str) -> list[tuple[I64, F64]]:
    ids = arrays.integers(given.ids, f"{where}: ids")
    logprobs = arrays.doubles(given.logprobs, f"{where}: logprobs")
    if ids.ndim != 2 or ids.shape != logprobs.shape:
        raise InputError(
            f"{where}: ids have the shape {ids.shape}, logprobs {logprobs.shape}, expected "
            "[tokens, entries] of both."
        )
    return list(zip(ids[at], logprobs[at], strict=True))


def _tail(tail: F64, head: F64, where: str) -> F64:
    """Check the tails beyond entries, of the given probability."""
    _check_each(tail <= SUM_TOLERANCE, tail, "a tail that is no log-probability", where)
    total = head + np.exp(tail)
    _check_each(
        np.abs(total - 1) <= SUM_TOLERANCE,
        total,
        "entries and tail whose probabilities add up to another number than 1",
        where,
    )
    return np.minimum(tail, 0.0)


def _check_each(is_good: Array, found: F64, what: str, where: str) -> None:
    bad = np.flatnonzero(~is_good)
    if len(bad):
        raise InputError(
            f"{where}, record {int(bad[0]):,}: has {what} ({found[bad[0]]:.4g}). Give natural "
            "logarithms over the full vocabulary, at temperature 1, never renormalised."
        )


def _log(mass: F64) -> F64:
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(mass, 0.0))
