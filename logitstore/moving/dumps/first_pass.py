"""The first pass over a dump: every row is read, checked and counted; nothing is written."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.format.spec import CAN_BE_MISSING
from logitstore.moving.dumps.files import Dump, Place
from logitstore.moving.dumps.lists import look_renormalised, sums
from logitstore.moving.dumps.locate import Placed
from logitstore.moving.dumps.reading import Reader
from logitstore.moving.dumps.settings import ImportSettings

#: Of the lists that would show it, so many must add up to one before it is taken for no accident.
_RENORMALISED_SHARE = 0.9
#: Lists that hold a neighbour of their token this much more often than the token lie beside it.
_BETTER_BY = 0.25
_LEAST_LOOKED_AT = 10


@dataclass
class Survey:
    """What a dump holds.

    Attributes:
        reader: Reads its rows.
        text_bytes: (rows,) text of each.
        places: (rows, 4) where each begins.
        statuses: Rows by status.
        supervised: Tokens to train on.
        records: Those that have a list.
        entries: Of all lists.
        unlisted: Records whose token is not in its list, and whose log-probability nobody says.
        unsorted: Lists that were not most probable first.
        left_out: Generated tokens of responses that were asked for the prompt's probabilities.
        top_k: Entries of the longest list.
        all_full: Whether every list is of the whole vocabulary.
        left_over: Sum over records of the probability outside their lists.
    """

    reader: Reader
    text_bytes: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    places: I64 = field(default_factory=lambda: np.zeros((0, 4), np.int64))
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

    def count(self, placed: Placed, unsorted: int, left_out: int) -> None:
        """One row more."""
        lists = placed.lists
        self.statuses[placed.line.status] += 1
        self.supervised += placed.supervised
        self.records += len(lists)
        self.entries += len(lists.ids)
        self.unlisted += int(np.isnan(placed.own).sum())
        self.unsorted += unsorted
        self.left_out += left_out
        self.top_k = max(self.top_k, int(lists.counts.max(initial=0)))
        self.all_full &= bool((lists.counts == self.reader.vocab_size).all())
        self.left_over += float((1 - sums(lists)).sum())
        suspects, telling = look_renormalised(lists, self.reader.vocab_size)
        self.suspects, self.telling = self.suspects + suspects, self.telling + telling
        self.fits += placed.fits
        self.looked_at += placed.looked_at

    def missing(self) -> list[str]:
        """What the store must say that it lacks."""
        settings = self.reader.settings
        if settings.renormalised:
            return list(CAN_BE_MISSING)
        lacks = {
            "entropy": not self.all_full,
            "token_logprob": bool(self.unlisted) and settings.unlisted == "mark",
        }
        return sorted(name for name, is_lacking in lacks.items() if is_lacking)

    def facts(self) -> dict[str, Any]:
        """The counts, for the user to look at."""
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
    """Read every row.

    Raises:
        InputError: The first thing that is wrong.
    """
    settings.check()
    survey: Survey | None = None
    text_bytes: list[int] = []
    places: list[Place] = []
    with progress(dump.size_bytes, "check", "B") as shown:
        done = 0
        for number, (place, where, row) in enumerate(dump.rows()):
            if survey is None:
                survey = Survey(Reader.make(settings, row, where))
            placed, unsorted, left_out = survey.reader.read(row, number, where)
            survey.count(placed, unsorted, left_out)
            text_bytes.append(sum(len(s.text.encode()) for s in placed.line.segments))
            places.append(place)
            now = dump.bytes_before(place)
            shown.update(now - done)
            done = now
        shown.update(dump.size_bytes - done)
    if survey is None:
        raise InputError(f"{dump.path}: 0 rows, so nothing to import. Give a dump with some.")
    survey.text_bytes = np.array(text_bytes, np.int64)
    survey.places = np.array(places, np.int64)
    _check(survey, dump)
    return survey


def _check(survey: Survey, dump: Dump) -> None:
    """What only all rows together show."""
    own, late, early = (int(n) / max(survey.looked_at, 1) for n in survey.fits)
    better = max(late, early)
    if survey.looked_at >= _LEAST_LOOKED_AT and better > own + _BETTER_BY:
        raise InputError(_beside(survey, dump, own, late, early))
    if survey.facts()["records"] == 0:
        raise InputError(
            f"{dump.path}: no record in {len(survey.text_bytes):,} rows: of its "
            f"{survey.supervised:,} supervised tokens {survey.records:,} have a list. Check labels "
            "and masks, and which column the lists are in."
        )
    looks = survey.telling > 0 and survey.suspects >= _RENORMALISED_SHARE * survey.telling
    if looks and not survey.reader.settings.renormalised:
        raise InputError(
            f"{dump.path}: its lists add up to one ({survey.suspects:,} of the {survey.telling:,} "
            "that would show otherwise), so they were renormalised, and what lay outside them is "
            "lost. Dump log-probabilities over the full vocabulary; or import with --renormalised: "
            "every loss that needs the rest then refuses the store."
        )
    if survey.reader.settings.renormalised and not looks:
        raise InputError(
            f"{dump.path}: its lists leave {survey.facts()['tail_mean']:.4f} of the probability "
            "outside on average, so they were not renormalised. Leave --renormalised out."
        )


def _beside(survey: Survey, dump: Dump, own: float, late: float, early: float) -> str:
    """The lists fit a neighbour: the shift by one that every reader of such data has had."""
    neighbour, share = ("after", late) if late > early else ("before", early)
    moves_on = survey.reader.aligned_to == "next"
    says = (
        f"{dump.path}: {share:.0%} of the lists hold the token {neighbour} the one they would be "
        f"of, {own:.0%} their own: they are shifted."
    )
    if neighbour == "after" and not moves_on:
        return f"{says} Add --aligned-to next."
    if neighbour == "before" and moves_on:
        return f"{says} Add --aligned-to token."
    return f"{says} Write the dump again with each list on its token."
