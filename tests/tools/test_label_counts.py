"""Maps are judged by what came: right, total variation, and what events cannot tell apart."""

from typing import Any

import numpy as np
import pytest

from tests.kit import tokenizers
from tools.label_counts import FIRST, SORTS, Counted, Row, counted, judge, rows, side
from tools.plain_tokens import PlainTokenizer


class OneToOne:
    """A map that sends all of a teacher's token to one event, and has no remainders."""

    first = None

    def __init__(self, event: list[int], of_token: list[int]) -> None:
        self.event, self.of_token = np.array(event), np.array(of_token)

    def event_of(self, ids: Any) -> Any:
        return self.of_token[ids]

    def source_of_token(self, ids: Any, space: Any) -> Any:
        return ids + 0 * space

    def source_behind(self, ids: Any, written: Any) -> Any:
        return ids + 0 * written


def pairs(*both: tuple[int, int]) -> Counted:
    """Shared starts of (teacher's token, label), all of them words."""
    teacher, student = np.array(both).T
    zeros = np.zeros(len(both), np.int64)
    labels = dict.fromkeys((*SORTS, FIRST), 0) | {"words": len(both)}
    last = np.arange(len(both))  # each behind another token
    return Counted(labels, teacher, zeros, zeros, student, zeros, zeros.astype(bool), last)


def test_a_map_that_asks_for_what_comes_is_right() -> None:
    found = judge(OneToOne([0, 1], [0, 1]), pairs((0, 0), (1, 1), (1, 1)))
    assert (found["right"], found["total variation"], found["paired"]) == (1, 0, 1)
    assert (found["words"], found["labels"]["words"], found["numerals"]) == (1, 3, None)


def test_what_is_wrong_here_may_be_right_on_average() -> None:
    found = judge(OneToOne([0, 1], [0, 1]), pairs((0, 1), (1, 0)))
    assert (found["right"], found["total variation"]) == (0, 0)


def test_mass_that_is_sent_nowhere_is_asked_for_and_never_comes() -> None:
    found = judge(OneToOne([-1, 1], [0, 1]), pairs((0, 0), (1, 1)))
    assert (found["right"], found["total variation"]) == (0.5, 0.5)


def test_what_the_student_never_writes_behind_its_last_token_is_not_judged() -> None:
    made = OneToOne([0, 1], [0, 1])
    fits = lambda last, teacher: (last != 1) | (teacher != 0)  # noqa: E731
    found = judge(made, pairs((1, 1), (0, 1), (1, 1), (0, 0)), fits)
    assert (found["right"], found["total variation"], found["cut"]) == (1, 0, 0.25)
    assert (found["paired"], found["labels"]["words"]) == (1, 3)
    assert judge(made, pairs((1, 1), (0, 1), (1, 1), (0, 0)))["right"] == 0.75


def test_the_last_token_is_the_one_that_ended_where_the_label_begins() -> None:
    """Not that of another turn, and none in front of an end or inside one of the teacher's."""
    joined, apart = (tokenizer(kind) for kind in ("digits joined", "digits apart"))
    row = [Row("talk", ["who", "x = 1024", "what", "a letter"])]
    read = side("", apart, row)
    found = counted(read, read)
    ids = [-1, *(label.token.id for label in read.labels[0])][:-1]
    is_behind = ~found.is_first & (found.sort != SORTS.index("ends"))
    assert found.last.tolist() == np.where(is_behind, ids, -1).tolist()
    assert is_behind.sum() > 5
    within = counted(side("", joined, row), read)
    assert within.written.any()
    assert (within.last[within.written > 0] == -1).all()


def test_one_event_for_everything_is_right_and_says_nothing() -> None:
    found = judge(OneToOne([0, 0], [0, 0]), pairs((0, 1), (1, 0)))
    assert (found["right"], found["bits of tokens"], found["bits of events"]) == (1, 1, 0)


def test_labels_between_two_starts_have_a_teacher_token_around_them() -> None:
    """Here three digits are one token, there one: two labels begin inside of it."""
    joined, apart = (tokenizer(kind) for kind in ("digits joined", "digits apart"))
    row = [Row("text", ["x = 1024"])]
    found = counted(side("", joined, row), side("", apart, row))
    numerals = found.sort == SORTS.index("numerals")
    assert found.written[numerals].tolist() == [0, 1, 2, 0]
    assert found.labels["numerals"] == 4


def test_first_labels_are_those_at_the_start_of_a_turn() -> None:
    plain = tokenizer("gpt2")
    row = [Row("talk", ["who is there", "nothing is", "what is it", "a letter"])]
    read = side("", plain, row)
    found = counted(read, read)
    assert found.labels[FIRST] == found.is_first.sum() == 2
    assert found.labels["ends"] == 2


@pytest.mark.parametrize("form", ["text", "prompt", "talk"])
def test_rows_hold_the_whole_document(form: str) -> None:
    documents = [f"{n} one two three four five six seven eight nine" for n in range(9)]
    for row, text in zip(rows(documents, seed=0), documents, strict=True):
        if row.form == form:
            assert (" " if form == "talk" else "").join(row.parts) == text


def tokenizer(kind: str) -> PlainTokenizer:
    made = tokenizers.build(kind)
    return PlainTokenizer(made, [made.eos_token_id])
