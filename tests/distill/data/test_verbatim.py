"""A token that writes other bytes than the text is compared by no loss that pairs by bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from distill.data.dataset import StoreDataset
from distill.data.targets import aligned_pairs
from distill.evaluation.against_store import judge
from distill.losses.loss import Pairing
from distill.student.text import StudentReader
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import tokenizers

TEXTS = ("ﬁve ofﬁces at 20 ℃ of the old river", "Ａ or Ｂ, ½ of ²; the teacher reads")  # noqa: RUF001
SIDES = [("gpt2", "nfkc"), ("nfkc", "gpt2")]


def store_of(teacher: PreTrainedTokenizerFast, folder: Path) -> FakeStore:
    rows = [(Segment(text, supervised=True),) for text in TEXTS]
    return FakeStore.from_teacher(tiny.llama(len(teacher), seed=7), teacher, rows, folder)


def writes_text(reader: ByteTokenizer, token: int, text: bytes) -> bool:
    return reader.written(np.array([token]))[0] == text


@pytest.mark.parametrize(("of_teacher", "of_student"), SIDES)
@pytest.mark.parametrize("loss", ["uld", "alm"])
def test_groups_with_other_bytes_than_the_text_have_no_pair(
    tmp_path: Path, loss: str, of_teacher: str, of_student: str
) -> None:
    store = store_of(tokenizers.build(of_teacher), tmp_path)
    student = ByteTokenizer(tokenizers.build(of_student))
    data, dropped = StoreDataset(store, student, [loss]), 0
    for i in range(len(data)):
        asked = data.asked(i, loss)
        assert asked is not None
        text = asked.text.supervised_bytes
        sides: Any = (
            (data.teacher, asked.records.token_ids, asked.teacher),
            (student, asked.label_ids, asked.student),
        )

        def is_text(group: Any, text: bytes = text, sides: Any = sides) -> bool:
            return all(
                spans.is_eos[n]
                or writes_text(reader, ids[n], text[spans.starts[n] :][: spans.lengths[n]])
                for (reader, ids, spans), (first, stop) in zip(
                    sides, (group[:2], group[2:]), strict=True
                )
                for n in range(first, stop)
            )

        expected = [group.tolist() for group in asked.alignment.groups if is_text(group)]
        assert asked.pairs.table.tolist() == expected
        dropped += len(asked.alignment.groups) - len(expected)
    assert dropped


@pytest.mark.parametrize("kind", [None, "canonical"])
def test_labels_with_other_bytes_than_the_text_have_no_pair_at_shared_starts(
    tmp_path: Path, kind: str | None
) -> None:
    """Whether or not their ids are compared."""
    store = store_of(tokenizers.build("gpt2"), tmp_path)
    data, dropped = StoreDataset(store, ByteTokenizer(tokenizers.build("nfkc"))), 0
    for i in range(len(data)):
        asked = data.asked(i)
        assert asked is not None
        pairing = Pairing("starts", kind)
        pairs = aligned_pairs(pairing, asked.alignment, asked.teacher, asked.student)
        other = np.flatnonzero(~asked.student.is_verbatim)
        assert not np.isin(pairs.table[:, 2], other).any()
        dropped += int(np.isin(asked.alignment.shared_starts[:, 1], other).sum())
    assert dropped


@pytest.mark.parametrize(("of_teacher", "of_student"), SIDES)
def test_evaluation_measures_uld_over_the_groups_that_are_trained_on(
    tmp_path: Path, of_teacher: str, of_student: str
) -> None:
    store = store_of(tokenizers.build(of_teacher), tmp_path)
    tokenizer = tokenizers.build(of_student)
    student = ByteTokenizer(tokenizer)
    reader = StudentReader(student, store.spec.rendering, store.path)
    found = judge(tiny.llama(len(tokenizer)), store, reader, ["uld"])
    data = StoreDataset(store, student, ["uld"])
    wanted = sum(len(data[i].teacher["uld"]["index"]) for i in range(len(data)))
    assert found["judged"]["groups"] == wanted > 0
