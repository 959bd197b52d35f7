"""A label is compared with a record only where both models have read the same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from distill.data.coverage import coverage
from distill.data.dataset import StoreDataset
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.talks import capture, dataset_of, save_families
from tests.kit.templates import turns

LOSSES = ("mapped_kl", "uld", "alm")
CROSSED: Row = (Segment("The teacher ", False), Segment("reads.", True))


def dataset(
    folder: Path,
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    losses: Sequence[str] = LOSSES,
    **options: Any,
) -> StoreDataset:
    model = tiny.llama(len(teacher), seed=7)
    store: Any = FakeStore.from_teacher(model, teacher, list(rows), folder / "t")
    return StoreDataset(store, ByteTokenizer(student), losses, **options)


def covered(data: StoreDataset, row: int, loss: str) -> set[int]:
    """The labels that belong to a pair of a loss."""
    arrays = data[row].teacher[loss]
    return {int(i) for name, a in arrays.items() if name.endswith("index") for i in a}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_token_that_begins_in_the_prompt_is_compared_only_with_one_that_begins_there_too(
    loss: str, tmp_path: Path
) -> None:
    """The student's ` reads` begins in the prompt, the byte teacher's `r` behind it."""
    student = tiny.unigram()
    data = dataset(tmp_path, tiny.byte_bpe(258, bos=True), student, [CROSSED])
    assert 0 not in covered(data, 0, loss)
    assert covered(data, 0, loss)
    without_space: Row = (Segment("The teacher", False), Segment(" reads.", True))
    again = dataset(tmp_path, tiny.byte_bpe(258, bos=True), student, [without_space])
    assert 0 in covered(again, 0, loss)
    itself = dataset(tmp_path, tiny.unigram(), student, [CROSSED])
    assert 0 in covered(itself, 0, loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_at_the_edge_of_a_window_no_label_is_compared_that_begins_before_it(
    loss: str, tmp_path: Path
) -> None:
    """A window is cut between two of its teacher's tokens, where a larger one may lie."""
    teacher, text = tiny.byte_bpe(270, bos=True), " ".join(tiny.corpus()[36:39])
    ends = ByteTokenizer(teacher).encode([Segment(text, True)], add_eos=False).text_ends[1:]
    edges = [int(end) for end in ends[4:60:5]]
    windows = [(Segment(text[:at], False), Segment(text[at:], True)) for at in edges]
    data = dataset(tmp_path, teacher, tiny.byte_bpe(600, bos=True), windows)
    crossing = 0
    for row in range(len(windows)):
        tokens, *_ = data.reader.read(data.store.text(row), _no_ends())
        assert tokens is not None
        head = int(tokens.heads[tokens.has_record][0])
        crossing += head > 0
        assert (0 in covered(data, row, loss)) == (head == 0)
    assert 0 < crossing < len(windows)


def _no_ends() -> Any:
    from distill.alignment.align import Spans

    nothing = np.zeros(0, np.int64)
    return Spans(nothing, nothing, nothing > 0)


def test_position_counts_a_first_token_that_has_no_bytes(tmp_path: Path) -> None:
    """Behind no BOS a lone mark (`▁`) has no record; the token behind it is the second."""
    student = tiny.unigram(bos=False)
    reader = ByteTokenizer(student)
    rows: list[Row] = [(Segment(text, True),) for text in ("Ωa letter", "the letter")]
    lone, word = (reader.encode(row) for row in rows)
    assert reader.token_bytes[lone.token_ids[0]] == b" "
    assert lone.byte_starts[lone.has_record][0] == 0 < word.byte_starts[word.has_record][0]
    data = dataset(tmp_path, tiny.byte_bpe(bos=True), student, rows, ["uld"], pairing="position")
    for row in range(2):
        arrays, records = data[row].teacher["uld"], data.store.read_many([row])[0]
        second = int(records.entry_count[0])
        first_pair = arrays["entry_logprobs"][: int(arrays["entry_count"][0])]
        np.testing.assert_allclose(
            first_pair, records.entry_logprobs[second : second + len(first_pair)]
        )


def test_coverage_counts_the_ends_of_turns_as_training_sends_them(tmp_path: Path) -> None:
    """Answers without a word: each label is the end of a turn, which the template chooses."""
    folders = save_families(tmp_path)
    store = capture(folders["llama3"], [{"messages": turns("Hi!", "")}], tmp_path / "store")
    for student in ("gemma", "chatml"):
        every = coverage(dataset_of(folders[student], store))["kinds"]["all"]
        assert (every["labels"], every["shared_starts"], every["right"]) == (1, 1, 1)
