"""Finish the placed lists of a row, and turn them into records: for whatever the lists come from.

Shape legend: n = records.
"""

from dataclasses import replace

import numpy as np

from logitstore.format.encoded import EncodedRecords
from logitstore.format.numpy_types import F64
from logitstore.format.spec import StoreSpec
from logitstore.moving.dumps.locate import Placed
from logitstore.writing.encode import RawRecords, encode_records
from logitstore.writing.lists import lists as of_lists
from logitstore.writing.lists.lists import UNKNOWN, check_largest, without_extras


def finished(placed: Placed, vocab_size: int, where: str) -> Placed:
    """Fill in each token's own log-probability, and keep lists of the most probable tokens.

    Raises:
        InputError: A list cannot hold the most probable tokens; names the token.
    """
    listed = placed.lists.logprob_of(placed.token_ids)
    own = np.where(placed.own > UNKNOWN, np.minimum(placed.own, 0.0), listed)  # NaN is not >
    lists = without_extras(placed.lists, placed.token_ids, placed.ranks, vocab_size)
    check_largest(lists, vocab_size, where)
    return replace(placed, own=own, lists=lists)


def encoded(
    placed: Placed,
    spec: StoreSpec,
    *,
    renormalised: bool = False,
    tail: F64 | None = None,
    entropy: F64 | None = None,
) -> EncodedRecords | None:
    """Encode the records of a row; None if it has none.

    Args:
        placed: The row, finished.
        spec: Of the store.
        renormalised: Whether the lists were made to add up to one, so that no tail is known.
        tail: (n,) log of the probability beyond each list; None: what the list leaves to one.
        entropy: (n,) in nats; None: of lists that hold the whole vocabulary.

    Raises:
        InputError: Something that the format cannot hold.
    """
    n, lists, own = len(placed.token_ids), placed.lists, placed.own
    if not n:
        return None
    if renormalised:
        lists, tail = of_lists.renormalised(lists), np.full(n, -np.inf)
        own = np.full(n, np.nan)  # from a renormalised list it would be wrong, too
    elif tail is None:
        lists, tail = of_lists.at_most_one(lists), of_lists.tails(lists, spec.vocab_size)
    if entropy is None:
        is_known = "entropy" not in spec.missing
        entropy = of_lists.entropies(lists) if is_known else np.zeros(n)
    logprobs, ids = of_lists.padded(lists)
    raw = RawRecords(
        token_ids=placed.token_ids,
        byte_starts=placed.byte_starts,
        byte_lengths=placed.byte_lengths,
        token_logprob=np.nan_to_num(own, nan=-np.inf, neginf=-np.inf),
        entry_logprobs=logprobs,
        entry_ids=ids,
        entry_count=lists.counts,
        tail_logmass=tail,
        entropy=entropy,
    )
    return encode_records(raw, spec)
