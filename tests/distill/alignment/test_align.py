"""Alignment of two tokenisations: what it must be, against a plain two-pointer loop."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from distill.alignment.align import Alignment, Spans, align, align_many
from tools.plain_alignment import Token, places_of_both, plain_align


def spans(tokens: Sequence[Sequence[Any]]) -> Spans:
    starts, lengths, is_eos, heads, tails = (
        zip(*(Token(*token) for token in tokens), strict=True) if tokens else [()] * 5
    )
    return Spans(
        np.array(starts, np.int64),
        np.array(lengths, np.int64),
        np.array(is_eos, np.bool_),
        heads=np.array(heads, np.int64),
        tails=np.array(tails, np.int64),
    )


def words(*lengths: int, eos: bool = False) -> Spans:
    """Back to back from byte 0, then perhaps the end-of-sequence event."""
    starts = np.cumsum((0, *lengths))
    tokens = [Token(int(s), n, False) for s, n in zip(starts, lengths, strict=False)]
    return spans([*tokens, Token(int(starts[-1]), 0, True)] if eos else tokens)


def as_lists(found: Alignment) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    return found.shared_starts.tolist(), found.strict.tolist(), found.groups.tolist()


@st.composite
def tokenisations(
    draw: st.DrawFn, size: int, events: Sequence[int], seams: Sequence[int] = ()
) -> list[Token]:
    """Tokens over `size` bytes, with holes, tokens without bytes, and events at given bytes.

    No token goes on over a seam, but those beside it may cross into it.
    """
    cuts = draw(st.sets(st.integers(1, size - 1))) if size > 1 else set()
    edges = sorted({0, size, *cuts, *seams})
    tokens: list[Token] = []
    for start, stop in pairwise(edges):
        zero_width = draw(st.sampled_from([0, 0, 0, 1, 2]))
        tokens += [Token(start, 0, False)] * zero_width
        if start in events:
            tokens += [Token(start, 0, True)] * draw(st.integers(0, 2))
            tokens += [Token(start, 0, False)] * draw(st.sampled_from([0, 0, 1]))
        if draw(st.integers(0, 5)):  # else a hole
            written_out = draw(st.integers(0, 9)) == 0  # text that spells an end-of-sequence token
            head = draw(st.integers(0, 2)) if start in seams else 0
            tail = draw(st.integers(0, 2)) if stop in seams else 0
            tokens.append(Token(start, stop - start, written_out, head, tail))
    for is_eos in (False, True, False):
        count = draw(st.sampled_from([0, 1, 2] if is_eos else [0, 0, 1]))
        tokens += [Token(size, 0, is_eos)] * count
    return tokens


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Token], list[Token]]:
    size = draw(st.integers(1, 9))
    places = st.lists(st.integers(0, size), max_size=3)
    events, seams = draw(places), draw(places)
    some = seams[draw(st.sampled_from([0, 0, 0, 1])) :]  # a token of one side may reach over one
    return draw(tokenisations(size, events, seams)), draw(tokenisations(size, events, some))


@given(pairs())
def test_agrees_with_a_plain_loop(pair: tuple[list[Token], list[Token]]) -> None:
    teacher, student = pair
    assert as_lists(align(spans(teacher), spans(student))) == plain_align(teacher, student)


@given(st.lists(pairs(), max_size=5))
def test_many_at_once_are_each_alone(texts: list[tuple[list[Token], list[Token]]]) -> None:
    sides = [(spans(teacher), spans(student)) for teacher, student in texts]
    found = align_many(sides)
    assert [as_lists(each) for each in found] == [as_lists(align(*each)) for each in sides]


def test_many_texts_need_no_more_memory_than_they_have_tokens() -> None:
    """One that claims to lie behind an exabyte is aligned by itself."""
    far = spans([(0, 1, False), (2**61, 3, False)])
    near = words(1, 2, 1), words(2, 1, 1)
    found = align_many([near, (far, far), near, (far, far)])
    assert [as_lists(each) for each in found] == [
        as_lists(align(*each)) for each in (near, (far, far), near, (far, far))
    ]


@given(pairs())
def test_swapping_the_sides_swaps_the_columns(pair: tuple[list[Token], list[Token]]) -> None:
    there, back = (align(spans(a), spans(b)) for a, b in (pair, pair[::-1]))
    assert (there.shared_starts == back.shared_starts[:, ::-1]).all()
    assert (there.strict == back.strict[:, ::-1]).all()
    assert (there.groups == back.groups[:, [2, 3, 0, 1]]).all()


@given(pairs())
def test_groups_cover_the_same_bytes_on_both_sides_and_never_overlap(
    pair: tuple[list[Token], list[Token]],
) -> None:
    t, s = places_of_both(*pair)
    groups = align(spans(pair[0]), spans(pair[1])).groups.tolist()
    for a, b, c, d in groups:
        assert (t[a][0], t[b - 1][1]) == (s[c][0], s[d - 1][1])
        assert sum(end - start for start, end in t[a:b]) == t[b - 1][1] - t[a][0] > 0
    for left, right in pairwise(groups):
        assert left[1] <= right[0]
        assert left[3] <= right[2]


@given(pairs())
def test_a_tokenisation_agrees_with_itself_token_by_token(
    pair: tuple[list[Token], list[Token]],
) -> None:
    tokens = [token for token in pair[0] if token.length or token.is_eos]
    every = [[i, i] for i in range(len(tokens))]
    shared, strict, groups = as_lists(align(spans(tokens), spans(tokens)))
    assert shared == strict == every
    assert groups == [[i, i + 1, i, i + 1] for i in range(len(tokens))]


@given(st.data())
def test_without_holes_the_groups_are_a_partition_of_both_sides(data: st.DataObject) -> None:
    sides = []
    for _ in range(2):
        cuts = data.draw(st.sets(st.integers(1, 11)))
        sides.append(words(*np.diff([0, *sorted(cuts), 12]).tolist(), eos=True))
    groups = align(*sides).groups
    assert groups[0].tolist()[::2] == [0, 0]
    assert (groups[1:, [0, 2]] == groups[:-1, [1, 3]]).all()
    assert groups[-1, [1, 3]].tolist() == [len(side.starts) for side in sides]


def test_the_example_of_the_module() -> None:
    shared, strict, groups = as_lists(align(words(1, 2, 1), words(2, 1, 1)))
    assert (shared, strict, groups) == ([[0, 0], [2, 2]], [[2, 2]], [[0, 2, 0, 2], [2, 3, 2, 3]])


def test_end_of_sequence_is_one_event_wherever_both_have_it() -> None:
    """Two turns: each ends with an event; the second turn starts where the first one's lies."""
    teacher = spans([(0, 3, False), (3, 0, True), (3, 2, False), (5, 0, True)])
    student = spans([(0, 1, False), (1, 2, False), (3, 0, True), (3, 2, False), (5, 0, True)])
    found = align(teacher, student)
    assert found.strict.tolist() == [[1, 2], [2, 3], [3, 4]]
    assert found.groups.tolist() == [[0, 1, 0, 2], [1, 2, 2, 3], [2, 3, 3, 4], [3, 4, 4, 5]]


def test_an_event_of_one_side_only_is_not_an_event() -> None:
    """A teacher that closes with two end-of-sequence tokens, a student with one, or with none."""
    teacher = spans([(0, 2, False), (2, 0, True), (2, 0, True)])
    assert align(teacher, words(2, eos=True)).groups.tolist() == [[0, 1, 0, 1], [1, 2, 1, 2]]
    assert align(teacher, words(2)).shared_starts.tolist() == [[0, 0]]


def test_a_lone_prefix_belongs_to_its_group_but_does_not_stand_for_it() -> None:
    teacher = spans([(0, 0, False), (0, 3, False)])  # "▁" + "学", as SentencePiece may have it
    found = align(teacher, words(3))
    assert found.shared_starts.tolist() == found.strict.tolist() == [[1, 0]]
    assert found.groups.tolist() == [[0, 2, 0, 1]]


@pytest.mark.parametrize("hole", [0, 1, 2])
def test_a_hole_on_either_side_breaks_only_its_group(hole: int) -> None:
    whole = [(0, 2, False), (2, 1, False), (3, 2, False)]
    torn = whole[:hole] + whole[hole + 1 :]
    kept = [i for i in range(3) if i != hole]
    there, back = align(spans(whole), spans(torn)), align(spans(torn), spans(whole))
    assert there.groups[:, 0].tolist() == kept
    assert back.groups[:, 2].tolist() == kept


def test_the_callers_arrays_stay_as_they_are() -> None:
    teacher, student = words(2, 1, eos=True), words(1, 2, eos=True)
    columns = [field.name for field in fields(Spans)]
    before = [getattr(side, c).copy() for side in (teacher, student) for c in columns]
    align(teacher, student)
    after = [getattr(side, c) for side in (teacher, student) for c in columns]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_tokens_that_have_read_different_context_share_no_start_and_no_group() -> None:
    """Behind the prompt `A: ` the student's ` 42` begins a byte earlier than the teacher's `4`."""
    teacher = spans([(0, 1, False), (1, 1, False), (2, 0, True)])
    student = spans([(0, 2, False, 1), (2, 0, True)])
    assert as_lists(align(teacher, student)) == ([[2, 1]], [[2, 1]], [[2, 3, 1, 2]])
    without = spans([(0, 2, False), (2, 0, True)])
    assert as_lists(align(teacher, without))[0] == [[0, 0], [2, 1]]


def test_tokens_that_cross_alike_are_paired_like_all_others() -> None:
    teacher = spans([(0, 1, False, 1), (1, 2, False, 0, 2), (3, 1, False, 3)])
    student = spans([(0, 3, False, 1, 2), (3, 1, False, 3)])
    assert as_lists(align(teacher, student)) == (
        [[0, 0], [2, 1]],
        [[2, 1]],
        [[0, 2, 0, 1], [2, 3, 1, 2]],
    )


def test_a_token_that_goes_on_into_context_closes_no_group_with_one_that_does_not() -> None:
    teacher, student = spans([(0, 2, False, 0, 1)]), spans([(0, 2, False)])
    assert as_lists(align(teacher, student)) == ([[0, 0]], [], [])


def test_an_end_of_a_turn_stands_before_what_the_next_turns_first_token_reads_of_the_context() -> (
    None
):
    teacher = spans([(0, 2, False), (2, 0, True), (2, 2, False, 1)])
    student = spans([(0, 2, False), (2, 0, True), (2, 2, False)])
    found = align(teacher, student)
    assert found.shared_starts.tolist() == [[0, 0], [1, 1]]
    assert found.groups.tolist() == [[0, 1, 0, 1], [1, 2, 1, 2]]
