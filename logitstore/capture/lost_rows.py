"""Stop a capture that would keep nothing, or less than its user thinks.

Twice: on the rows that are looked at before the teacher is loaded, when nothing is written yet; and
on all of them, before the store is sealed. A store without a single record is never sealed. What a
flag asked for (`--overflow skip`) and rows without text do not count as lost.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from logitstore.capture.estimate.sample import Sample
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.settings import CaptureSettings
from logitstore.console.left_out import LeftOut, is_surely_more, lost
from logitstore.errors import InputError
from logitstore.format.index import statuses_of
from logitstore.format.statuses import left_out_of
from logitstore.storage.paths import StorePath
from logitstore.store import LogitStore

log = logging.getLogger(__name__)

_MOST_NAMED = 2


def check_sample(sample: Sample, dataset: str, rows: int, settings: CaptureSettings) -> None:
    """Reject a dataset of which nothing, or too little, would have records.

    Args:
        sample: Rows that were looked at.
        dataset: Its name, for messages.
        rows: How many rows it has.
        settings: Of the capture.

    Raises:
        InputError: Names the reasons, the first row of each, and what to do.
    """
    left_out = _counted(sample.statuses, sample.sequences, settings)
    is_all = sample.rows == rows
    if is_all and not sample.records and not settings.generate:
        raise InputError(
            f"{dataset}: none of its {rows:,} rows gives a record: {_named(left_out)}",
            kind="lost-rows",
        )
    count = lost(left_out)
    if not is_surely_more(count, sample.rows, rows, settings.max_lost):
        return
    looked_at = f"{count:,} of {'its' if is_all else 'the'} {sample.rows:,} rows"
    looked_at += "" if is_all else f" that were looked at (of {rows:,})"
    raise InputError(
        f"{dataset}: {looked_at} would have no records, more than --max-lost {settings.max_lost:g}:"
        f" {_named([each for each in left_out if each.is_lost])} To leave them out, add "
        "--max-lost 1.",
        kind="lost-rows",
    )


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
            f"from it: {_named(left_out_of(statuses))} Then capture into another --out.",
            kind="lost-rows",
        )

    return check


def warn_of_lost(store: LogitStore, settings: CaptureSettings) -> None:
    """Warn at the end if more was lost than the user allowed; the table has the reasons."""
    left_out = _asked_for(left_out_of(store.statuses, store.first_rows()), settings)
    count = lost(left_out)
    if count > settings.max_lost * len(store):
        log.warning(
            "%s: %s of %s sequences have no records, more than --max-lost %g: %s",
            store.path,
            f"{count:,}",
            f"{len(store):,}",
            settings.max_lost,
            _named([each for each in left_out if each.is_lost]),
        )


def _counted(
    statuses: Counter[str], sequences: Iterable[TeacherSequence], settings: CaptureSettings
) -> list[LeftOut]:
    first_rows: dict[str, int] = {}
    for each in sequences:
        first_rows.setdefault(each.line.status, each.line.row)
    return _asked_for(left_out_of(statuses, first_rows), settings)


def _asked_for(left_out: Iterable[LeftOut], settings: CaptureSettings) -> list[LeftOut]:
    """Count nothing as lost that a flag asked for."""
    asked = {"not_finite"} if settings.on_nan == "skip" else set()
    asked |= {"too_long"} if settings.overflow == "skip" else set()
    return [replace(each, is_lost=each.is_lost and each.reason not in asked) for each in left_out]


def _named(left_out: Sequence[LeftOut]) -> str:
    """Name the most frequent reasons, each with its first row and what to do."""
    parts = [
        f"{each.count:,} {each.reason}"
        + ("" if each.first_row is None else f" (first: row {each.first_row:,})")
        + f": {each.why}. {each.step}"
        for each in left_out[:_MOST_NAMED]
    ]
    return " ".join(parts) or "the dataset has no rows."
