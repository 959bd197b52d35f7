"""Reject a store without a single record before it is sealed, and say why rows have none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from logitstore.console.left_out import LeftOut
from logitstore.errors import InputError
from logitstore.format.index import statuses_of
from logitstore.format.statuses import left_out_of
from logitstore.storage.paths import StorePath

_MOST_NAMED = 2


def check_shards(store: StorePath) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """Make a check of all shards of a store, before it is sealed.

    Args:
        store: The store, for messages.

    Returns:
        A function of the lines of its index, which raises InputError if no shard has a record.
    """

    def check(shards: Sequence[Mapping[str, Any]]) -> None:
        if any(shard["records"] for shard in shards):
            return
        statuses = statuses_of(shards)
        raise InputError(
            f"{store}: no row has a record, so it is not sealed, and no student can be trained "
            f"from it: {reasons_in_words(left_out_of(statuses))} Then write into another --out.",
            kind="lost-rows",
        )

    return check


def reasons_in_words(left_out: Sequence[LeftOut]) -> str:
    """Name the most frequent reasons, each with its first row and what to do."""
    parts = [
        f"{each.count:,} {each.reason}"
        + ("" if each.first_row is None else f" (first: row {each.first_row:,})")
        + f": {each.why}. {each.step}"
        for each in left_out[:_MOST_NAMED]
    ]
    return " ".join(parts) or "the dataset has no rows."
