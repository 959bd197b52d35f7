"""Texts of several stores are joined by what the student reads and learns of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.data.dataset import StoreDataset
from distill.data.joining import join, shares
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row
from logitstore.text.tokenizer import ByteTokenizer

LONG = "a text that one teacher reads in two windows, and the other whole"


def learnt(text: str, before: str = "") -> Row:
    return (Segment(before, supervised=False), Segment(text, supervised=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


def data_of(folder: Path, rows: Sequence[Row], *, other: bool = False) -> StoreDataset:
    """A store of these rows, by a teacher of one of two tokenizers, as the student reads it."""
    tokenizer = tiny.unigram() if other else tiny.byte_bpe()
    store = FakeStore.from_teacher(tiny.llama(len(tokenizer)), tokenizer, rows, folder / str(other))
    return StoreDataset(store, ByteTokenizer(tiny.byte_bpe()))


def table(every: Sequence[StoreDataset], *, of_first: bool = False) -> list[list[int]]:
    found: list[list[int]] = join(every, of_first=of_first).table_ES.tolist()
    return found


def test_rows_meet_by_their_text_whatever_their_order_and_tokenizers(folder: Path) -> None:
    one = data_of(folder, [learnt("one"), learnt("two"), learnt("only here")])
    other = data_of(folder, [learnt("two"), learnt("only there"), learnt("one")], other=True)
    assert table([one, other]) == [[0, 2], [1, 0], [2, -1], [-1, 1]]
    assert table([one, other], of_first=True) == [[0, 2], [1, 0], [2, -1]]
    assert table([other, one]) == [[0, 1], [1, -1], [2, 0], [-1, 2]]


def test_a_text_that_is_there_twice_is_paired_by_occurrence(folder: Path) -> None:
    one = data_of(folder, [learnt("yes"), learnt("no"), learnt("yes")])
    other = data_of(folder, [learnt("yes"), learnt("yes"), learnt("yes"), learnt("no")])
    assert table([one, other]) == [[0, 0], [1, 3], [2, 1], [-1, 2]]


def test_the_same_answer_to_another_question_is_another_row(folder: Path) -> None:
    one = data_of(folder, [learnt("yes", "Is it? ")])
    for other in (
        learnt("yes", "Is it not? "),
        learnt("yes"),
        learnt("Is it? yes"),
        learnt("? yes", "Is it"),
    ):
        assert table([one, data_of(folder, [other])]) == [[0, -1], [-1, 0]]


def test_how_a_text_is_cut_into_segments_does_not_matter(folder: Path) -> None:
    cut = (
        Segment("Is ", supervised=False, role="user"),
        Segment("", supervised=True),
        Segment("it? ", supervised=False),
        Segment("y", supervised=True),
        Segment("es", supervised=True),
    )
    assert table([data_of(folder, [learnt("yes", "Is it? ")]), data_of(folder, [cut])]) == [[0, 0]]


def test_a_text_with_an_end_is_not_one_that_goes_on(folder: Path) -> None:
    one, other = (data_of(folder, [learnt("yes")]) for _ in range(2))
    other.store.texts[0] = other.store.texts[0]._replace(status="unfinished")  # type: ignore[attr-defined]
    assert table([one, other]) == [[0, -1], [-1, 0]]


def in_windows(folder: Path, at: int, text: str = LONG) -> StoreDataset:
    """A store with that text in two windows, and one row more."""
    rows = [learnt(text[:at]), learnt(text[at:]), learnt("short")]
    data = data_of(folder, rows)
    store = data.store
    assert isinstance(store, FakeStore)
    for i in (0, 1):
        store.texts[i] = store.texts[i]._replace(
            row=0, part=i, status="split", supervised_start=i * len(text[:at].encode())
        )
        records = store.records[i]
        starts = records.byte_starts + i * len(text[:at].encode())
        store.records[i] = replace(records, byte_starts=starts)
    store.texts[2] = store.texts[2]._replace(row=1)
    return StoreDataset(store, data.reader.tokenizer)


def test_windows_meet_where_both_are_cut_alike_and_else_count_for_the_first(folder: Path) -> None:
    alike = [in_windows(folder, 20), in_windows(folder, 20)]
    assert table(alike) == [[0, 0], [1, 1], [2, 2]]
    for other in (in_windows(folder, 21), data_of(folder, [learnt(LONG), learnt("short")])):
        found = join([alike[0], other])
        last = len(other) - 1
        assert found.table_ES.tolist() == [[0, -1], [1, -1], [2, last]]
        assert found.cut_otherwise.tolist() == [0, 1]
        found = join([other, alike[0]])
        assert found.table_ES[:, 1].tolist() == [*([-1] * last), 2]


def test_a_row_is_divided_among_the_stores_that_have_it() -> None:
    given = np.array([[0, 0, 0], [1, -1, 1], [-1, 4, -1]])
    found = shares(given, [1, 2, 5])
    np.testing.assert_allclose(found, [[1 / 8, 2 / 8, 5 / 8], [1 / 6, 0, 5 / 6], [0, 1, 0]])
