"""Maps judged by counts: each figure by hand, on vocabularies of a few tokens."""

import numpy as np
import pytest

from distill.alignment.event_map import EventMap
from distill.alignment.make_map import Seen, learnt
from distill.data.judging import out_of_fold, sent_to, turn_starts, variation
from logitstore.records import Segment, SequenceText


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def hard(*event: int) -> EventMap:
    """Sends each of the teacher's tokens to one event."""
    size = len(event)
    return EventMap(np.tile(np.array(event, np.int32), 3), np.full(size + 1, 3 * size, np.int64))


def seen(*triples: tuple[int, int, int]) -> Seen:
    """Counts of (teacher's token, student's token, times)."""
    teacher, student, count = np.array(triples, np.int64).T
    return Seen(np.zeros_like(teacher), teacher, student, count)


def test_a_hard_map_is_right_or_wrong_and_total_variation_sums_what_is_asked_too_often() -> None:
    made = hard(0, 1, -1)
    source, came = ints(0, 0, 1, 2), ints(0, 1, 1, 2)
    sent = sent_to(made, source, came)
    assert sent.event.tolist() == [0, 0, 1, -1]
    assert sent.mass.tolist() == [1, 0, 1, 0]
    # Asked: 0 twice, 1 once, one for nothing. Came: 0 once, 1 twice, 2 once.
    assert variation(made, source, came, np.ones(4, np.int64)) == pytest.approx((1 + 1 + 1 + 1) / 8)


def test_a_map_that_spreads_gives_each_label_its_share() -> None:
    made = learnt(hard(0, 1), seen((0, 1, 3), (0, 2, 4)))
    sent = sent_to(made, ints(0, 0, 0, 1), ints(0, 1, 2, 2))
    assert sent.mass == pytest.approx([1 / 8, 3 / 8, 4 / 8, 0])
    assert sent.event.tolist() == [2, 2, 2, 1]


def test_asking_as_often_as_it_comes_has_no_total_variation() -> None:
    made = learnt(hard(0, 0), seen((0, 1, 1)))  # half to 0, half to 1
    assert variation(made, ints(0, 0), ints(0, 1), ints(5, 5)) == pytest.approx(0)
    assert variation(made, ints(0, 0), ints(0, 1), ints(10, 0)) == pytest.approx(0.5)
    assert variation(made, ints(), ints(), ints()) is None


def test_counting_is_judged_on_the_half_that_it_has_not_counted() -> None:
    canonical = hard(0, 1)
    alike = seen((0, 2, 90), (0, 0, 10), (1, 1, 50))
    folds = out_of_fold(canonical, (alike, alike))
    assert folds["canonical"]["mass"] == pytest.approx(60 / 150)
    assert folds["canonical"]["total_variation"] == pytest.approx(90 / 150)
    assert folds["counted"]["mass"] > folds["canonical"]["mass"]
    assert folds["counted"]["total_variation"] < 0.01
    # What one half has is nowhere in the other: counting it was for nothing.
    other = seen((0, 0, 100), (1, 1, 50))
    folds = out_of_fold(canonical, (alike, other))
    assert folds["counted"]["total_variation"] == pytest.approx(0.6, abs=0.02)
    assert folds["canonical"]["total_variation"] == pytest.approx(0.3)
    assert out_of_fold(canonical, (alike, seen((0, 0, 0)))) == {}


def test_turns_begin_behind_context_and_later_parts_of_a_row_go_on() -> None:
    parts = (("Hi", True), (" a", True), ("?", False), ("yes", True), ("", False), ("!", True))
    segments = tuple(Segment(text, supervised=is_in) for text, is_in in parts)
    assert turn_starts(SequenceText(0, 0, "ok", segments)).tolist() == [0, 4]
    assert turn_starts(SequenceText(0, 1, "ok", segments)).tolist() == [4]
