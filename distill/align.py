"""Where two tokenisations of the same supervised text agree, by bytes.

Teacher and student tokenise the same UTF-8 text, and both sides know which bytes each token covers.
That gives three kinds of agreement, from weak to strong:

    shared start   the same bytes lie before both tokens: both distributions answer one question
    group          the smallest run of tokens on both sides that starts and ends together
    strict         two tokens that start and end together

Here the teacher has a|bc|d, and the student ab|c|d:

    teacher   |a |b  c |d |       shared starts   (a, ab), (d, d)
    student   |a  b |c |d |       groups          (a bc, ab c), (d, d);   strict   (d, d)

**Width.** An end-of-sequence token has no bytes, but it is an event that both sides predict. Where
both have one at the same byte they are matched, the first with the first, and the pair is one
virtual byte wide: from there on it is an ordinary token, in its own group, strictly aligned. Every
other token without bytes (a tokenizer's lone space prefix, a second end-of-sequence) has no width.

**Of several tokens that start at one place** the last one shares the start: it has everything
before that place as its context. A token without width therefore never stands where one with bytes
starts too. It belongs to the group that starts there (its probability is part of that group's
scale), or to none.

**Holes** (a first token without a record, dropped characters, a split window) break groups: a group
has no uncovered byte on either side.

Shape legend: P = shared starts, Q = strict pairs, G = groups.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Spans(NamedTuple):
    """The supervised tokens of one side, in order; they never overlap.

    Attributes:
        starts: (n,) int64, bytes of supervised text before each token, never falling.
        lengths: (n,) int64, bytes of each token.
        is_eos: (n,) bool, True for an end-of-sequence token.
    """

    starts: Ints
    lengths: Ints
    is_eos: npt.NDArray[np.bool_]


class Alignment(NamedTuple):
    """Agreements between two sides, in text order. Every index counts that side's tokens.

    Attributes:
        shared_starts: (P, 2) int64, (teacher, student).
        strict: (Q, 2) int64, (teacher, student); a subset of `shared_starts`.
        groups: (G, 4) int64, (teacher first, teacher stop, student first, student stop).
    """

    shared_starts: Ints
    strict: Ints
    groups: Ints


def align(teacher: Spans, student: Spans) -> Alignment:
    """All agreements between two tokenisations of one text. Linear but for sorting."""
    teacher_matched, student_matched = _match_events(teacher, student)
    teacher_starts, teacher_ends = _places(teacher, teacher_matched)
    student_starts, student_ends = _places(student, student_matched)

    places = np.intersect1d(teacher_starts, student_starts)
    pairs = np.stack([_last_at(teacher_starts, places), _last_at(student_starts, places)], axis=1)
    ends_too = teacher_ends[pairs[:, 0]] == student_ends[pairs[:, 1]]

    cuts = np.intersect1d(
        np.concatenate([teacher_starts, teacher_ends]),
        np.concatenate([student_starts, student_ends]),
    )
    teacher_runs, teacher_whole = _runs(teacher_starts, teacher_ends, cuts)
    student_runs, student_whole = _runs(student_starts, student_ends, cuts)
    groups = np.concatenate([teacher_runs, student_runs], axis=1)[teacher_whole & student_whole]
    return Alignment(pairs, pairs[ends_too], groups)


def _match_events(teacher: Spans, student: Spans) -> tuple[Ints, Ints]:
    """Indices of the end-of-sequence events that both sides have, the j-th of a byte with its j-th.

    Returns:
        Two ascending arrays of equal length, (teacher's, student's).
    """
    teacher_events, teacher_keys = _events(teacher)
    student_events, student_keys = _events(student)
    # One integer a (byte, number at that byte); the radix is above every number on either side.
    radix = max(1, len(teacher_events), len(student_events))
    _, in_teacher, in_student = np.intersect1d(
        teacher_keys @ [radix, 1], student_keys @ [radix, 1], return_indices=True
    )
    return teacher_events[in_teacher], student_events[in_student]


def _events(spans: Spans) -> tuple[Ints, Ints]:
    """Zero-byte EOS tokens: their indices, and (byte, number among the events at that byte)."""
    events = np.flatnonzero(spans.is_eos & (spans.lengths == 0))
    at = spans.starts[events]
    number = np.arange(len(events)) - np.searchsorted(at, at, side="left")
    return events, np.stack([at, number], axis=1)


def _places(spans: Spans, matched: Ints) -> tuple[Ints, Ints]:
    """Starts and ends on a ruler in which every matched event is one byte wide."""
    width = spans.lengths.astype(np.int64)  # a copy: the caller's lengths stay as they are
    width[matched] = 1
    starts = spans.starts + np.searchsorted(matched, np.arange(len(width)), side="left")
    return starts, starts + width


def _last_at(starts: Ints, places: Ints) -> Ints:
    """Index of the last token that starts at each place; every place has one."""
    return np.searchsorted(starts, places, side="right") - 1


def _runs(starts: Ints, ends: Ints, cuts: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The tokens between neighbouring cuts, and whether they cover every byte between them.

    No token crosses a cut, since a cut is a boundary on both sides: comparing widths is enough.

    Returns:
        (cuts - 1, 2) int64 first and stop; (cuts - 1,) bool.
    """
    at = np.searchsorted(starts, cuts, side="left")
    covered_before = np.concatenate([[0], np.cumsum(ends - starts)])
    covered = covered_before[at[1:]] - covered_before[at[:-1]]
    return np.stack([at[:-1], at[1:]], axis=1), covered == np.diff(cuts)
