"""Counts of what a map asks for against what the text has.

A teacher that knew the text would give each of its tokens probability one. A map sends that token
to events of the student's vocabulary; the text says which event came. That is counted here, over
pairs of a record and a label:

    right             the label's event is the one that most of the token is sent to
    wrong             nothing of the token is sent to the label's event
    mass              the share of the token that is sent to the label's event
    total variation   half the sum over events of |how often it is asked for - how often it came|,
                      a label: what stays wrong however long one averages; mass that is sent to no
                      event is asked for and never comes

Where a map spreads a token over several events, a label may be neither right nor wrong.

Shape legend: n = pairs, m = events that their tokens are sent to.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.event_map import EventMap
from distill.alignment.make_map import Seen, learnt
from distill.alignment.runs import Ints, runs
from distill.data.targets import Pairs
from logitstore.records import SequenceText
from logitstore.text.tokenizer import ByteTokenizer

Bools = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]

#: What a label is, by the bytes that it writes: each is one of these. And those that are also the
#: first of a text or a turn.
SORTS = ("words", "numerals", "white space", "other scripts", "signs", "ends")
FIRST = "first of a turn"
#: Lines of a tally that wait to be counted.
_MOST_WAITING = 1 << 20


class Sent(NamedTuple):
    """Where the teacher's own tokens are sent.

    Attributes:
        event: (n,) the event that gets most of each token; -1 is none.
        mass: (n,) the share of the token that its label's event gets.
    """

    event: Ints
    mass: F64


def sources_of(made: EventMap, token_ids: npt.NDArray[Any], pairs: Pairs) -> Ints:
    """Find (n,) the source of the teacher's own token at each pair.

    Args:
        made: The map.
        token_ids: (records,) the teacher's tokens.
        pairs: Pairs of the sequence.
    """
    own = token_ids[pairs.table[:, 1] - 1].astype(np.int64)
    behind = made.source_behind(own, np.maximum(pairs.written, 1))
    return np.where(pairs.written > 0, behind, made.source_of_token(own, pairs.space))


def sent_to(made: EventMap, source: Ints, came: Ints) -> Sent:
    """Compare where tokens are sent with the events that came.

    Args:
        made: The map.
        source: (n,) the source of each token.
        came: (n,) the event of each label; one below 0 is never sent to.
    """
    owner, event, share = _spread(made, source)
    best = np.full(len(source), -1, np.int64)
    order = np.lexsort((share, owner))  # the largest share of each comes last, and stays
    best[owner[order]] = event[order]
    is_label = (event == came[owner]) & (event >= 0)
    mass = np.bincount(owner[is_label], share[is_label], len(source))
    return Sent(best, np.asarray(mass, np.float64))


def variation(made: EventMap, source: Ints, came: Ints, count: Ints) -> float | None:
    """Compute the total variation between what is asked for and what came; None of nothing.

    Args:
        made: The map.
        source: (n,) the source of each token.
        came: (n,) the event of each label.
        count: (n,) how often both came together.
    """
    owner, event, share = _spread(made, source)
    is_sent, is_event = event >= 0, came >= 0
    asked = share[is_sent] * count[owner[is_sent]]
    size = int(max(came.max(initial=0), event.max(initial=0))) + 1
    # Of no weights at all, numpy counts in whole numbers.
    off = np.bincount(event[is_sent], asked, size).astype(np.float64)
    off -= np.bincount(came[is_event], count[is_event], size)
    never = float(count.sum() - asked.sum()) + float(count[~is_event].sum())
    total = float(count.sum())
    return (float(np.abs(off).sum()) + never) / 2 / total if total else None


def out_of_fold(canonical: EventMap, halves: tuple[Seen, Seen]) -> dict[str, dict[str, float]]:
    """Judge a counted map on text that it has not counted, beside the map that it starts from.

    Each half of the text is counted once, and judged once by the counts of the other.

    Args:
        canonical: The map that sends each token to the student's own first token of its bytes.
        halves: Pairs seen in either half.

    Returns:
        `mass` and `total_variation` of either map, means over both halves; none of nothing.
    """
    found: dict[str, list[tuple[float, float, float]]] = {"canonical": [], "counted": []}
    for counted, judged in (halves, halves[::-1]):
        for name, made in (("canonical", canonical), ("counted", learnt(canonical, counted))):
            source = made.source_of_token(judged.teacher, judged.space)
            off = variation(made, source, judged.student, judged.count)
            if off is None:
                return {}
            mass = sent_to(made, source, judged.student).mass
            weight = float(judged.count.sum())
            found[name].append((weight, float(mass @ judged.count) / weight, off))
    return {name: _means(folds) for name, folds in found.items()}


def _means(folds: list[tuple[float, float, float]]) -> dict[str, float]:
    weight, mass, off = np.array(folds).T
    means = {"mass": mass, "total_variation": off}
    return {name: float(weight @ each / weight.sum()) for name, each in means.items()}


def bits_of(ids: Ints, count: Ints) -> float:
    """Compute the entropy of how often each id occurs, in bits; `count` is how often each line."""
    _, place = np.unique(ids, return_inverse=True)
    counts = np.bincount(place, count)
    share = counts[counts > 0] / max(1, int(count.sum()))
    return float(-(share * np.log2(share)).sum())


class Tally:
    """Counts how often each line of numbers came, in the memory of the different ones.

    Args:
        width: Numbers of a line.
    """

    def __init__(self, width: int) -> None:
        self._parts = [np.zeros((width, 0), np.int64)]
        self._counts = [np.zeros(0, np.int64)]
        self._waiting = 0

    def add(self, *columns: Ints) -> None:
        """Count (n,) lines, given as columns."""
        self._parts.append(np.stack([np.asarray(column, np.int64) for column in columns]))
        self._counts.append(np.ones(len(columns[0]), np.int64))
        self._waiting += len(columns[0])
        if self._waiting > _MOST_WAITING:
            self.counted()

    def counted(self) -> tuple[Ints, Ints]:
        """Return the (width, m) different lines, in order, and (m,) how often each came."""
        lines, place = np.unique(np.concatenate(self._parts, 1), axis=1, return_inverse=True)
        count = np.bincount(place.reshape(-1), np.concatenate(self._counts), lines.shape[1])
        self._parts, self._counts = [lines], [count.astype(np.int64)]
        self._waiting = 0
        return self._parts[0], self._counts[0]


def sorts_of(student: ByteTokenizer, label_ids: Ints, is_end: Bools) -> Ints:
    """Tell (n,) which of `SORTS` each label is."""
    found = [_sort(written) for written in student.written(label_ids)]
    return np.where(is_end, SORTS.index("ends"), np.array(found, np.int64))


def _sort(written: bytes) -> int:
    if any(byte in b"0123456789" for byte in written):
        return SORTS.index("numerals")
    if written.isspace():
        return SORTS.index("white space")
    if any(byte >= 0x80 for byte in written):
        return SORTS.index("other scripts")
    return SORTS.index("words" if any(65 <= byte & 0xDF <= 90 for byte in written) else "signs")


def turn_starts(text: SequenceText) -> Ints:
    """List where turns and texts begin, in bytes of the sequence's supervised text."""
    starts, place, is_inside = [], 0, text.part > 0  # a later part of a row goes on with it
    for segment in text.segments:
        if segment.supervised and segment.text and not is_inside:
            starts.append(place)
        if segment.text:
            is_inside = segment.supervised
        place += len(segment.text.encode()) * segment.supervised
    return np.array(starts, np.int64)


def _spread(made: EventMap, source: Ints) -> tuple[Ints, Ints, F64]:
    """List where each source is sent: (source's place, event, share), flat."""
    if made.first is None:
        return np.arange(len(source)), made.event[source].astype(np.int64), np.ones(len(source))
    assert made.share is not None
    owner, pair = runs(made.first[source], made.first[source + 1])
    return owner, made.event[pair].astype(np.int64), made.share[pair].astype(np.float64)
