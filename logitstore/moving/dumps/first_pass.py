"""Read, check and count every row of a dump before anything is written."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from logitstore.console.counts import counted
from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.format.spec import CAN_BE_MISSING
from logitstore.moving.dumps.files import Dump
from logitstore.moving.dumps.locate import Placed
from logitstore.moving.dumps.reading import Reader
from logitstore.moving.dumps.settings import ImportSettings
from logitstore.writing.lists.lists import look_renormalised, sums

#: The share of the lists that can tell which must sum to 1 before a dump counts as renormalised.
RENORMALISED_SHARE = 0.9
#: Lists that contain a neighbour of their token this much more often than the token are shifted.
BETTER_BY = 0.25
LEAST_LOOKED_AT = 10


@dataclass
class Survey:
    """The counts of a first pass over a dump.

    Attributes:
        reader: The reader of its rows.
        text_bytes: (rows,) bytes of text of each row.
        statuses: The number of rows by status.
        supervised: The number of tokens to train on.
        records: The number of those that have a list.
        entries: The number of entries of all lists.
        unlisted: Records whose token is not in its list and has no log-probability elsewhere.
        unsorted: Lists that were not sorted by falling probability.
        left_out: Generated tokens of responses that were asked for the prompt's probabilities.
        top_k: The number of entries of the longest list.
        all_full: Whether every list holds the whole vocabulary.
        left_over: The sum of the tails over records.
        suspects: Lists that sum to 1 although they should not, as renormalised ones do.
        telling: Lists that can show whether they were renormalised.
        fits: Lists that hold their own token, the token after it, and the token before it.
        looked_at: Lists that `fits` was counted over.
        is_packed: Whether a row has several documents.
    """

    reader: Reader
    text_bytes: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    statuses: Counter[str] = field(default_factory=Counter)
    supervised: int = 0
    records: int = 0
    entries: int = 0
    unlisted: int = 0
    unsorted: int = 0
    left_out: int = 0
    top_k: int = 0
    all_full: bool = True
    left_over: float = 0.0
    suspects: int = 0
    telling: int = 0
    fits: I64 = field(default_factory=lambda: np.zeros(3, np.int64))
    looked_at: int = 0
    is_packed: bool = False

    def count(self, placed: Placed) -> None:
        """Add the counts of one row, or of one document in it."""
        lists = placed.lists
        self.statuses[placed.line.status] += 1
        self.supervised += placed.supervised
        self.records += len(lists)
        self.entries += len(lists.ids)
        self.unlisted += int(np.isnan(placed.own).sum())
        self.top_k = max(self.top_k, int(lists.counts.max(initial=0)))
        self.all_full &= bool((lists.counts == self.reader.vocab_size).all())
        self.left_over += float((1 - sums(lists)).sum())
        suspects, telling = look_renormalised(lists, self.reader.vocab_size)
        self.suspects, self.telling = self.suspects + suspects, self.telling + telling
        self.fits += placed.fits
        self.looked_at += placed.looked_at

    def missing(self) -> list[str]:
        """List the fields that the store must declare as missing."""
        settings = self.reader.settings
        if settings.renormalised:
            return list(CAN_BE_MISSING)
        lacks = {
            "entropy": not self.all_full,
            "token_logprob": bool(self.unlisted) and settings.unlisted == "mark",
        }
        return sorted(name for name, is_lacking in lacks.items() if is_lacking)

    def facts(self) -> dict[str, Any]:
        """Return the counts, as `logitstore import --json` prints them."""
        dropped = self.unlisted if self.reader.settings.unlisted == "drop" else 0
        return {
            "layout": self.reader.layout,
            "aligned_to": self.reader.aligned_to,
            "rows": len(self.text_bytes),
            "statuses": dict(self.statuses),
            "supervised_tokens": self.supervised,
            "records": self.records - dropped,
            "without_list": self.supervised - self.records,
            "not_in_their_list": self.unlisted,
            "generated_left_out": self.left_out,
            "unsorted_lists": self.unsorted,
            "entries": self.entries,
            "top_k": self.top_k,
            "tail_mean": max(self.left_over / max(self.records, 1), 0.0),
        }


def look_through(dump: Dump, settings: ImportSettings) -> Survey:
    """Read, check and count every row of a dump.

    Raises:
        InputError: The dump is wrong; the first fault is named.
    """
    settings.check()
    survey: Survey | None = None
    text_bytes: list[int] = []
    with progress(dump.size_bytes, "check", "B") as shown:
        for number, (where, row) in enumerate(dump.rows(shown.reach)):
            if survey is None:
                survey = Survey(Reader.make(settings, row, where, dump.folder))
            placed, unsorted, left_out = survey.reader.read(row, number, where)
            for document in placed:
                survey.count(document)
            survey.is_packed |= len(placed) > 1
            survey.unsorted += unsorted
            survey.left_out += left_out
            segments = (segment for each in placed for segment in each.line.segments)
            text_bytes.append(sum(len(segment.text.encode()) for segment in segments))
    if survey is None:
        raise InputError(f"{dump.path}: 0 rows, so nothing to import. Give a dump with some.")
    survey.text_bytes = np.array(text_bytes, np.int64)
    _check(survey, dump)
    return survey


def _check(survey: Survey, dump: Dump) -> None:
    """Raise InputError for faults that only all rows together show."""
    own, late, early = (int(n) / max(survey.looked_at, 1) for n in survey.fits)
    better = max(late, early)
    if survey.looked_at >= LEAST_LOOKED_AT and better > own + BETTER_BY:
        raise InputError(_beside(survey, dump, own, late, early))
    if survey.facts()["records"] == 0:
        raise InputError(
            f"{dump.path}: no record in {counted(len(survey.text_bytes), 'row')}: of its "
            f"{survey.supervised:,} supervised tokens {survey.records:,} have a list. Check labels "
            "and masks, and which column the lists are in."
        )
    looks = survey.telling > 0 and survey.suspects >= RENORMALISED_SHARE * survey.telling
    if looks and not survey.reader.settings.renormalised:
        raise InputError(
            f"{dump.path}: its lists add up to one ({survey.suspects:,} of the {survey.telling:,} "
            "that would show otherwise), so they were renormalised, and their tails are lost. Dump "
            "log-probabilities over the full vocabulary; or import with --renormalised: every loss "
            "that needs the tail then rejects the store."
        )
    if survey.reader.settings.renormalised and not looks:
        raise InputError(
            f"{dump.path}: the tails of its lists are {survey.facts()['tail_mean']:.4f} on "
            "average, so they were not renormalised. Leave --renormalised out."
        )


def _beside(survey: Survey, dump: Dump, own: float, late: float, early: float) -> str:
    """Return the message for lists that fit the token beside their own: a shift by one."""
    neighbour, share = ("after", late) if late > early else ("before", early)
    moves_on = survey.reader.aligned_to == "next"
    fault = (
        f"{dump.path}: {share:.0%} of the lists hold the token {neighbour} the one they would be "
        f"of, {own:.0%} their own: they are shifted."
    )
    if neighbour == "after" and not moves_on:
        return f"{fault} Add --aligned-to next."
    if neighbour == "before" and moves_on:
        return f"{fault} Add --aligned-to token."
    return f"{fault} Write the dump again with each list on its token."
