"""Tiny tokenizers that disagree as real ones do, each pair against the definition.

The same laws hold for real vocabularies (`tests/real`), which not every machine has.
"""

import random
from functools import cache
from itertools import permutations

import pytest

from logitstore.testing import tiny
from tests.kit import tokenizers
from tests.kit.agreement import Pair, Read, assert_same_pairs, read
from tools.plain_tokens import Piece

PAIRS = list(permutations(tokenizers.KINDS, 2))


@cache
def pair(kind: str) -> Pair:
    return Pair.of(tokenizers.build(kind))


@cache
def rows() -> tuple[tuple[Piece, ...], ...]:
    """Whole texts, prompts cut at any character, and supervised text in several stretches."""
    rng = random.Random(0)
    texts = [*tokenizers.texts()[-5:], *tiny.corpus()[-12:], *tiny.corpus()[:3]]
    made: list[tuple[Piece, ...]] = []
    for text in texts:
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(5))
        bounds = list(zip([0, *cuts], [*cuts, len(text)], strict=True))
        made.append(((text, True),))
        made.append(((text[: cuts[2]], False), (text[cuts[2] :], True)))
        made.append(tuple((text[a:b], n % 2 == 1) for n, (a, b) in enumerate(bounds)))
    return tuple(made)


@cache
def reads(kind: str) -> list[Read]:
    return [read(pair(kind), row) for row in rows()]


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_each_label_lies_where_the_definition_has_it(kind: str) -> None:
    assert sum(len(each.plain) for each in reads(kind)) > 500


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_the_same_labels_are_paired_as_by_the_definition(teacher: str, student: str) -> None:
    both = zip(reads(teacher), reads(student), strict=True)
    assert sum(assert_same_pairs(t, s) for t, s in both) > 100
