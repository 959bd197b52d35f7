"""Laws of per-token lists, by hypothesis: nothing of a ragged list is lost, moved or made up."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.errors import InputError
from logitstore.writing.lists import lists as of_lists
from logitstore.writing.lists.lists import Lists, checked

VOCAB = 30

Made = list[list[tuple[int, float]]]


@st.composite
def distributions(draw: Any, *, whole: bool = False) -> Made:
    """Lists of the k most probable tokens of random distributions, k (or all) and order any."""
    made = []
    for _ in range(draw(st.integers(0, 6))):
        seed, scale = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.3, 2.0, 9.0]))
        logits = np.random.default_rng(seed).normal(size=VOCAB) * scale
        logprobs = logits - np.log(np.exp(logits).sum())
        count = VOCAB if whole else draw(st.integers(0, VOCAB))
        order = np.argsort(-logprobs, kind="stable")[:count]
        entries = [(int(i), float(logprobs[i])) for i in order]
        made.append(draw(st.permutations(entries)))
    return made


def as_lists(made: Made) -> Lists:
    return Lists(
        np.array([len(entries) for entries in made], np.int64),
        np.array([i for entries in made for i, _ in entries], np.int64),
        np.array([p for entries in made for _, p in entries], np.float64),
    )


def as_made(lists: Lists) -> Made:
    stops = np.cumsum(lists.counts)
    return [
        list(zip(lists.ids[a:b].tolist(), lists.logprobs[a:b].tolist(), strict=True))
        for a, b in zip(stops - lists.counts, stops, strict=True)
    ]


@given(distributions())
@settings(max_examples=80, deadline=None)
def test_checking_sorts_and_keeps_every_entry(made: Made) -> None:
    lists, unsorted = checked(as_lists(made), VOCAB, "row")
    expected = [sorted(entries, key=lambda e: (-e[1], e[0])) for entries in made]
    assert as_made(lists) == expected
    disorder = [e for e in made if any(a[1] < b[1] for a, b in pairwise(e))]
    assert unsorted == len(disorder)
    again, unsorted = checked(lists, VOCAB, "row")
    assert (as_made(again), unsorted) == (expected, 0)


@given(distributions(), st.data())
@settings(max_examples=60, deadline=None)
def test_taking_tokens_takes_their_lists(made: Made, data: Any) -> None:
    lists = as_lists(made)
    if made:
        chosen = data.draw(st.lists(st.integers(0, len(made) - 1), max_size=5))
        assert as_made(lists.take(np.array(chosen, np.int64))) == [made[i] for i in chosen]
    moved = as_made(lists.moved_on())
    assert moved == ([[], *made[:-1]] if made else [])


@given(distributions())
@settings(max_examples=80, deadline=None)
def test_head_and_tail_are_one_and_the_tail_is_what_the_others_can_hold(made: Made) -> None:
    lists, _ = checked(as_lists(made), VOCAB, "row")
    of_lists.check_largest(lists, VOCAB, "row")
    tails = np.exp(of_lists.tails(lists, VOCAB))
    total = of_lists.sums(lists) + tails
    np.testing.assert_allclose(total, 1, atol=2e-6)
    for entries, tail in zip(as_made(lists), tails, strict=True):
        if entries:
            assert tail <= (VOCAB - len(entries)) * np.exp(entries[-1][1]) + 1e-12
            assert (tail == 0) == (len(entries) == VOCAB)


@given(distributions())
@settings(max_examples=60, deadline=None)
def test_renormalised_lists_are_told_from_honest_ones(made: Made) -> None:
    lists, _ = checked(as_lists([e for e in made if 2 <= len(e) < VOCAB // 2]), VOCAB, "row")
    flat = lists.where(np.ones(len(lists.ids), bool))
    scaled = of_lists.renormalised(flat)
    suspects, telling = of_lists.look_renormalised(scaled, VOCAB)
    assert suspects == telling
    np.testing.assert_allclose(of_lists.sums(scaled), 1, atol=1e-12)


@given(distributions(whole=True), st.integers(0, VOCAB - 1), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_the_token_a_server_adds_is_taken_out_again(made: Made, token: int, k: int) -> None:
    """Every list has k entries, or k and the token itself: then k are left, the most probable."""
    whole = [sorted(e, key=lambda x: (-x[1], x[0])) for e in made]
    top = [entries[:k] for entries in whole]
    full = [
        t if token in dict(t) else [*t, (token, dict(entries)[token])]
        for t, entries in zip(top, whole, strict=True)
    ]
    ranks = np.array([1 + [i for i, _ in e].index(token) for e in whole], np.float64)
    lists, _ = checked(as_lists(full), VOCAB, "row")
    tokens = np.full(len(full), token)
    told = as_made(of_lists.without_extras(lists, tokens, ranks, VOCAB))
    for entries, kept, rank in zip(top, told, ranks, strict=True):
        assert kept[:k] == entries
        assert len(kept) == k or rank == k + 1  # the next one is no stranger
    if any(len(entries) == k for entries in full):
        untold = of_lists.without_extras(lists, tokens, np.full(len(full), np.nan), VOCAB)
        assert as_made(untold) == top


BAD: dict[str, tuple[Made, str]] = {
    "an id outside": (
        [[(1, -0.5)], [(30, -0.5)]],
        "r, token 1: id 30 is outside the vocabulary, which has 0 to 29. Give the width of",
    ),
    "a negative id": ([[(-1, -0.5)]], "r, token 0: id -1 is outside the vocabulary"),
    "NaN": (
        [[], [(1, np.nan)]],
        "r, token 1: the log-probability of id 1 is not a number. Drop the row.",
    ),
    "a probability": (
        [[(1, 0.7)]],
        "r, token 0: 0.7 for id 1 is above 0, so it is not a log-probability. Are these prob",
    ),
    "twice": (
        [[(2, -1.0), (1, -2.0), (2, -3.0)]],
        "r, token 0: id 2 is in its list twice. Drop the row, or repair what wrote it.",
    ),
    "more than one": (
        [[(1, -0.1), (2, -0.5)]],
        "r, token 0: its probabilities add up to 1.5114, expected 1 or less.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_list_that_cannot_be_is_one_clear_error(name: str) -> None:
    made, says = BAD[name]
    with pytest.raises(InputError) as refused:
        checked(as_lists(made), VOCAB, "r")
    assert str(refused.value).startswith(says)


def test_lists_that_are_not_of_the_most_probable_tokens_are_refused() -> None:
    lists, _ = checked(as_lists([[(1, -1.0), (2, -8.0)]]), VOCAB, "r")
    with pytest.raises(InputError) as refused:
        of_lists.check_largest(lists, VOCAB, "r")
    assert str(refused.value) == (
        "r, token 0: its 2 probabilities add up to 0.3682, and 28 other tokens no more probable "
        "than the last of them cannot be the rest. A list must hold the most probable tokens of a "
        "vocabulary of --vocab-size."
    )


def test_what_rounding_makes_of_a_sum_is_no_error() -> None:
    """Three digits written: 1.0004 is brought back to one; -inf is padding."""
    lists, _ = checked(as_lists([[(1, 0.0), (2, -7.8), (3, -np.inf)]]), VOCAB, "r")
    assert lists.counts.tolist() == [2]
    one = of_lists.at_most_one(lists)
    assert of_lists.sums(one)[0] == pytest.approx(1, abs=1e-12)
    assert np.exp(of_lists.tails(lists, VOCAB)[0]) == pytest.approx(1e-6)
