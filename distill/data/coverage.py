"""What training would ask a student for, counted on a store, and the advice that follows.

Shares of the student's labels, the supervised tokens that some position predicts:

    shared starts   labels at whose start a token of the teacher starts too: both predict what
                    follows the same bytes
    covered         labels that the loss compares with a record of the teacher; labels that begin
                    inside one of its tokens too, where the loss does so

and of the covered ones, where the loss has a map of the vocabularies (:mod:`distill.data.judging`):

    right           labels to which the map sends most of the teacher's own token there
    wrong           labels to which it sends nothing of that
    judged          how many of them, a number: both are shares of these

Not judged are tokens that the student never writes behind its own last one, where the loss leaves
these out of its target (:mod:`distill.alignment.cuts`): `cut` is their share of the covered labels.

A strict loss chooses its labels by what came, so that they are always right; it is judged at all
shared starts, where its other targets could come as well.

The pairs and the map are the ones that :class:`StoreDataset` makes for training. All shares are
also counted by what the labels are: tokenizers differ most in numerals and white space, and an
average over all text hides it.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.alignment.event_map import EventMap
from distill.alignment.runs import Ints, runs
from distill.data.dataset import StoreDataset
from distill.data.example import Store
from distill.data.judging import (
    FIRST,
    SORTS,
    Bools,
    Tally,
    bits_of,
    out_of_fold,
    sent_to,
    sorts_of,
    sources_of,
    turn_starts,
    variation,
)
from distill.data.left_out import Looker, check_usable, spread
from distill.data.maps import count_pairs
from distill.data.sides import Asked
from distill.data.targets import aligned_pairs
from distill.losses import advice, find, option_values
from distill.losses.evidence import measured
from distill.losses.loss import Pairing
from distill.losses.requirements import teacher_name, unmet
from logitstore.console.progress import progress
from logitstore.errors import IncompleteStoreError, MismatchError
from logitstore.text.tokenizer import ByteTokenizer

#: The most sequences whose text a counted map is tried on.
FOLDED = 4_000
#: Upper edges of the bins of tail mass; the last is 1.
TAIL_EDGES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
KINDS = ("all", *SORTS, FIRST)

Facts = dict[str, Any]


def coverage(
    data: StoreDataset,
    *,
    loss: str | None = None,
    sequences: int | None = None,
    weights: str = "unknown",
    rejects_nothing: bool = False,
) -> Facts:
    """Count what training would ask a student for, in all sequences of a store.

    Args:
        data: The store as the student reads it, for the loss.
        loss: The loss whose pairs and map are counted; None: the first of the dataset's that has a
            map, or the first.
        sequences: The most sequences to read, evenly spread over the store; None: all.
        weights: `new`, `trained` or `unknown`: whether the student has learnt already.
        rejects_nothing: Whether it is an error if the student can use no sequence.

    Returns:
        JSON-ready: shares by `KINDS` in `kinds`, `bits`, `vocabulary`, `folds`, `tails`,
        `recommended`, its `options`, the `reason`, what was `measured` of it and a `caution`; in
        `usable` what was left out and why; in `by_map` the shares of covered and wrong labels of
        the map that would be advised
    """
    loss = loss or _mapping_loss(data)
    chosen, looker = spread(len(data), sequences), Looker(data)
    counted = _counted(data, loss, chosen, looker)
    found = looker.found()
    if rejects_nothing:
        check_usable(found, data.store.path, max_lost=1)
    facts: Facts = _of_store(data) | {
        "weights": weights,
        "loss": loss,
        "map": None if loss is None else data.pairings[loss].map,
        "between": "on" if loss is not None and data.pairings[loss].has_between else "off",
        "by_students_choice": loss is not None and data.pairings[loss].kind == "strings",
        "sequences": len(chosen),
        "sequences_of": found.sequences,
        "sequences_skipped": found.looked_at - found.used,
        "usable": found.facts(),
        **counted.figures(),
    }
    facts["by_map"] = _by_map(data, facts, chosen)
    way = advice.recommend(facts)
    return facts | {
        "recommended": way.loss,
        "options": dict(way.options),
        "flags": advice.flags(way),
        "reason": way.why,
        "measured": measured(way.loss, way.options, weights),
        "caution": advice.caution([way.loss], weights, one_tokenizer=data.is_one_tokenizer),
    }


def _counted(
    data: StoreDataset, loss: str | None, chosen: Sequence[int], looker: Looker
) -> "_Counts":
    """Count what is asked for in some sequences, and what of them is not used."""
    counted = _Counts(data, loss, len(chosen))
    with progress(len(chosen), "count", "sequences") as shown:
        for i in chosen:
            asked = data.asked(i, loss)
            if asked is None:
                looker.look(i)
            else:
                looker.count_used(asked.text, asked.turns)
                counted.add(asked)
            shown.update(1)
    return counted


def _by_map(data: StoreDataset, facts: Facts, chosen: Sequence[int]) -> Facts | None:
    """Find the shares of covered and wrong labels of the map that would be advised; None: of none.

    They are what was counted if that map was looked at, else it is tried on the same sequences.
    """
    name, given = advice.TWO_TOKENIZERS, {"map": advice.map_for(facts["weights"])}
    options = option_values(given)
    if data.is_one_tokenizer or any(unmet(data.store, data.reader.tokenizer, name, options)):
        return None
    kinds = facts["kinds"]
    if facts["loss"] != name or data.pairings[name] != find(name).pairing_of(options):
        try:
            tried = data.with_losses([name], **given)
        except MismatchError:  # no token stands for another
            return {"covered": 0.0, "wrong": None, "judged": 0}
        kinds = _counted(tried, name, chosen, Looker(tried)).figures()["kinds"]
    return {figure: kinds["all"][figure] for figure in ("covered", "wrong", "judged")}


def _mapping_loss(data: StoreDataset) -> str | None:
    with_map = [name for name, pairing in data.pairings.items() if pairing.compares_tokens]
    return next(iter([*with_map, *data.losses]), None)


def _of_store(data: StoreDataset) -> Facts:
    store, student = data.store, data.reader.tokenizer
    return {
        "store": str(store.path),
        "teacher": teacher_name(store),
        "student": student.name,
        "same_tokenizer": data.is_one_tokenizer,
        "has_ids": bool(store.spec.has_ids),
        "missing": list(store.spec.missing),
        "has_entries": bool(store.spec.top_k),
        "has_draws": bool(store.spec.draws),
        "has_boundaries": _has_boundaries(store, student),
        "byte_student": max(map(len, filter(None, student.token_bytes)), default=0) <= 1,
        "vocabulary": _vocabularies(data.teacher, student),
    }


def _has_boundaries(store: Store, student: ByteTokenizer) -> bool:
    """Tell whether a store also has what its teacher said at this student's boundaries."""
    try:
        store.boundaries_of(student.fingerprint, student.name)
    except (MismatchError, IncompleteStoreError):
        return False
    return True


def _vocabularies(teacher: ByteTokenizer, student: ByteTokenizer) -> Facts:
    """Count the tokens that write bytes, and those that both tokenizers have."""
    theirs, ours = (set(filter(None, each.token_bytes)) for each in (teacher, student))
    shared = len(theirs & ours)
    return {
        "teacher": len(theirs),
        "student": len(ours),
        "shared": shared,
        "of_teacher": _share(shared, len(theirs)),
        "of_student": _share(shared, len(ours)),
    }


class _Counts:
    """Counts what is asked for in sequence after sequence."""

    def __init__(self, data: StoreDataset, loss: str | None, sequences: int) -> None:
        self._data, self._loss = data, loss
        self._made: EventMap | None = None
        mapping = None if loss is None else data.mappings[loss]
        self._has_map = mapping is not None
        self._is_strict = loss is not None and data.pairings[loss].kind == "strict"
        self._judged = Tally(3)  # of a label, the event that came, and the record's source
        self._totals = {kind: np.zeros(7) for kind in KINDS}
        self._tails = np.zeros(len(TAIL_EDGES), np.int64)
        self._halves: tuple[list[Any], list[Any]] = ([], [])
        self._added, self._every = 0, max(1, sequences // FOLDED)

    def add(self, asked: Asked) -> None:
        """Count a sequence: labels, shared starts, covered, right and wrong ones, by kind."""
        tail = np.exp(asked.records.tail_logmass.astype(np.float64)).clip(max=1)
        self._tails += np.bincount(np.searchsorted(TAIL_EDGES, tail), minlength=len(self._tails))
        n = len(asked.label_ids)
        values = np.zeros((n, 7))
        values[:, 0] = 1
        values[asked.alignment.shared_starts[:, 1], 1] = 1
        values[runs(asked.pairs.table[:, 2], asked.pairs.table[:, 3])[1], 2] = 1
        if asked.mapping is not None:
            self._judge(asked, asked.mapping.made, values)
        for kind, is_kind in self._kinds(asked).items():
            self._totals[kind] += values[is_kind].sum(0)
        self._added += 1
        if self._can_fold and self._added % self._every == 0:
            which = len(self._halves[0]) > len(self._halves[1])
            self._halves[which].append(asked.sides)

    def _judge(self, asked: Asked, made: EventMap, values: npt.NDArray[np.float64]) -> None:
        pairs = asked.pairs.chosen(asked.fits)
        values[asked.pairs.table[~asked.fits, 2], 6] = 1
        if self._is_strict:
            starts = Pairing("starts", "strict")
            pairs = aligned_pairs(starts, asked.alignment, asked.teacher, asked.student)
        label = pairs.table[:, 2]
        came = made.event_of(asked.label_ids[label]).astype(np.int64)
        source = sources_of(made, asked.records.token_ids, pairs)
        sent = sent_to(made, source, came)
        values[label, 5] = 1
        values[label, 3] = (sent.event == came) & (sent.event >= 0)
        values[label, 4] = sent.mass == 0
        self._made = self._made or made
        self._judged.add(asked.label_ids[label], came, source)

    def _kinds(self, asked: Asked) -> dict[str, Bools]:
        student = asked.student
        sort = sorts_of(self._data.reader.tokenizer, asked.label_ids, student.is_eos)
        is_first = np.isin(student.starts, turn_starts(asked.text))
        is_first &= (student.lengths > 0) & (student.heads == 0)
        kinds = {name: sort == number for number, name in enumerate(SORTS)}
        return {"all": np.ones(len(sort), np.bool_), **kinds, FIRST: is_first}

    @property
    def _can_fold(self) -> bool:
        return self._has_map and not self._data.is_one_tokenizer

    def figures(self) -> Facts:
        """Compute the shares of all that was counted."""
        (label, came, source), count = self._judged.counted()
        off = None
        if self._made is not None:
            off = variation(self._made, source, came, count)
        return {
            "kinds": {kind: self._shares(counts) for kind, counts in self._totals.items()},
            "total_variation": off,
            "bits": self._bits(label, came, count),
            "folds": self._folds(),
            "tails": [
                {"tail_at_most": edge, "records": n, "share": n / max(1, int(self._tails.sum()))}
                for edge, n in zip(TAIL_EDGES, self._tails.tolist(), strict=True)
            ],
        }

    def _bits(self, label: Ints, came: Ints, count: Ints) -> Facts | None:
        if self._made is None:
            return None
        tokens = bits_of(label, count)
        events = tokens if self._made.of_token is None else bits_of(came, count)
        return {"tokens": tokens, "events": events, "given_up": tokens - events}

    def _folds(self) -> dict[str, dict[str, float]] | None:
        """Judge the canonical and the counted map, each half of the text by the other."""
        if not self._can_fold or not all(self._halves):
            return None
        first, second = map(count_pairs, self._halves)
        try:
            canonical = self._data.map_of("canonical")
        except MismatchError:  # no token stands for another; what the loss compares is its own map
            return None
        return out_of_fold(canonical, (first, second)) or None

    def _shares(self, counts: npt.NDArray[np.float64]) -> Facts:
        labels, shared, covered, right, wrong, judged, cut = counts.tolist()
        has_pairs = self._loss is not None
        return {
            "labels": int(labels),
            "shared_starts": _share(shared, labels),
            "covered": _share(covered, labels) if has_pairs else None,
            "right": _share(right, judged) if self._has_map else None,
            "wrong": _share(wrong, judged) if self._has_map else None,
            "judged": int(judged) if self._has_map else None,
            "cut": _share(cut, covered) if self._has_map else None,
        }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def as_json(facts: Facts) -> str:
    """Format the facts as JSON, for programs."""
    return json.dumps(facts, indent=1)
