"""Stop a capture that would keep nothing, or less than its user thinks.

Twice: on the rows that are looked at before the teacher is loaded, when nothing is written yet; and
on all of them, before the store is sealed. A store without a single record is never sealed. What a
flag asked for (`--overflow skip`) and rows without text do not count as lost.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from logitstore.capture.estimate.sample import Sample
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.settings import CaptureSettings
from logitstore.console.counts import counted
from logitstore.console.left_out import LeftOut, is_surely_more, lost
from logitstore.errors import InputError
from logitstore.format.statuses import left_out_of
from logitstore.store import LogitStore
from logitstore.writing.some_records import reasons_in_words

log = logging.getLogger(__name__)


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
            f"{dataset}: none of its {counted(rows, 'row')} gives a record: "
            f"{reasons_in_words(left_out)}",
            kind="lost-rows",
        )
    count = lost(left_out)
    if not is_surely_more(count, sample.rows, rows, settings.max_lost):
        return
    looked_at = f"{count:,} of {'its' if is_all else 'the'} {counted(sample.rows, 'row')}"
    looked_at += "" if is_all else f" that were looked at (of {rows:,})"
    raise InputError(
        f"{dataset}: {looked_at} would have no records, more than --max-lost {settings.max_lost:g}:"
        f" {reasons_in_words([each for each in left_out if each.is_lost])} To leave them out, add "
        "--max-lost 1.",
        kind="lost-rows",
    )


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
            reasons_in_words([each for each in left_out if each.is_lost]),
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
