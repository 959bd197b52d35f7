"""BERT's vocabulary against the definition, both ways, on text without combining marks.

Its normaliser strips marks off their letters. The definition then leaves them out; here they stay
with the letter that a reader sees, which is said not to be verbatim.
"""

import unicodedata
from functools import cache
from pathlib import Path

import pytest

from tests.kit.agreement import Read, assert_same_pairs, read
from tests.real import test_real_labels as real
from tests.real.vocabularies import file_of, pair
from tools.label_counts import Row

pytestmark = [
    real.pytestmark,
    pytest.mark.skipif(
        not Path(file_of("bert")).exists(),
        reason=f"{file_of('bert')} is not there: `python -m tools.real_parts` fetches it",
    ),
]


def _has_marks(row: Row) -> bool:
    letters = unicodedata.normalize("NFD", "".join(map(str, row.parts)))
    return any(unicodedata.category(c).startswith("M") for c in letters)


@cache
def reads(name: str) -> list[Read]:
    rows = [row for row in real.some_rows() if not _has_marks(row)]
    return [read(pair(name), row.pieces(name, pair(name).plain)) for row in rows]


def test_each_token_writes_the_bytes_and_lies_where_the_definition_says() -> None:
    ours, plain = pair("bert")
    words = {i: written for i, written in plain.written.items() if i not in plain.special}
    assert {i: ours.token_bytes[i] for i in words} == words
    assert sum(len(each.plain) for each in reads("bert")) > 4_000


@pytest.mark.parametrize("other", ["llama3", "gpt2", "llama2"])
def test_the_same_labels_are_paired_both_ways(other: str) -> None:
    for teacher, student in ((other, "bert"), ("bert", other)):
        both = zip(reads(teacher), reads(student), strict=True)
        assert sum(assert_same_pairs(t, s) for t, s in both) > 2_000
