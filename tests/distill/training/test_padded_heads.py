"""Heads are padded beyond their tokenizer, each model of a family to another number of rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.data.dataset import StoreDataset
from logitstore.records import TokenRecords
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import logged, ragged_rows, trainer_of

SIZE = len(tiny.byte_bpe())
#: The smallest, the next and a larger model of a family: rows of their heads over one tokenizer.
ROWS = (SIZE, SIZE + 20, SIZE + 64)
#: Of a teacher and its student: neither, one or both padded, and each by more than the other.
SIDES = [(ROWS[t], ROWS[s]) for t, s in ((0, 0), (0, 1), (1, 0), (1, 2), (2, 1))]


def store_of(rows: int, folder: Path, **how: Any) -> FakeStore:
    """A teacher whose head has so many rows, and mass in all of them."""
    teacher = tiny.llama(rows, seed=7)
    how = {"top_k": 40} | how
    store = FakeStore.from_teacher(teacher, tiny.byte_bpe(), ragged_rows(), folder / "t", **how)
    beyond = [(r.entry_ids >= SIZE).sum() for r in store.records if r.entry_ids is not None]
    assert (sum(beyond) > 0) == (rows > SIZE)
    return store


def without_padding(records: TokenRecords) -> TokenRecords:
    """The same records, entries that no token has moved into the tail by hand."""
    assert records.entry_ids is not None
    kept = records.entry_ids < SIZE
    owner = np.repeat(np.arange(len(records)), records.entry_count)
    mass = np.where(kept, 0, np.exp(records.entry_logprobs.astype(np.float64)))
    tail = np.exp(records.tail_logmass.astype(np.float64)) + np.bincount(owner, mass, len(records))
    return replace(
        records,
        entry_ids=records.entry_ids[kept],
        entry_logprobs=records.entry_logprobs[kept],
        entry_count=np.bincount(owner[kept], minlength=len(records)),
        tail_logmass=np.log(tail).astype(np.float32),
    )


@pytest.mark.parametrize(("teacher_rows", "student_rows"), SIDES)
def test_padded_vocabularies_of_one_family_are_one_tokenizer(
    tmp_path: Path, teacher_rows: int, student_rows: int
) -> None:
    """As of Qwen 2.5, whose heads have 151,936 or 152,064 rows over one tokenizer."""
    store = store_of(teacher_rows, tmp_path)
    cut = replace(store, records=[without_padding(r) for r in store.records])
    for loss in ("tail_kl", "mapped_kl"):
        entries = []
        for number, held in enumerate((store, cut)):
            out, model = tmp_path / f"{loss}{number}", tiny.llama(student_rows)
            trainer = trainer_of(model, held, out, loss=loss, max_steps=1)
            trainer.train()
            entries.append(logged(trainer)[0])
        assert entries[0]["covered_fraction"] == 1
        for key in ("loss", "grad_norm", f"{loss}_loss"):
            assert entries[0][key] == pytest.approx(entries[1][key], rel=1e-5)


@pytest.mark.parametrize("rows", ROWS)
def test_draws_that_are_no_token_ask_for_nothing(tmp_path: Path, rows: int) -> None:
    store = store_of(rows, tmp_path, draws=20, top_k=4)
    data = StoreDataset(store, ByteTokenizer(tiny.byte_bpe()), ["sampled_kl"])
    for i, records in enumerate(store.records):
        arrays = data[i].teacher["sampled_kl"]
        assert max(arrays["entry_ids"].max(), arrays["draw_ids"].max()) < SIZE
        assert (arrays["draw_times"][arrays["draw_ids"] < 0] == 0).all()
        assert records.sample_counts is not None
        assert arrays["draw_times"].sum() <= records.sample_counts.sum()
    trainer = trainer_of(tiny.llama(SIZE), store, tmp_path / "o", loss="sampled_kl", max_steps=1)
    trainer.train()
    assert logged(trainer)[0]["covered_fraction"] == 1


@pytest.mark.parametrize("map", ["counted", "events", "prefix", "p_kl", "p_kl_weighted"])
def test_entries_beyond_the_tokenizer_of_another_family_join_the_rest(
    tmp_path: Path, map: str
) -> None:
    """Where labels begin inside a token, too."""
    teacher, rows = tiny.unigram(), ragged_rows()
    model = tiny.llama(len(teacher) + 64, seed=7)
    store = FakeStore.from_teacher(model, teacher, rows, tmp_path / "t", top_k=100)
    data = StoreDataset(store, ByteTokenizer(tiny.byte_bpe()), ["mapped_kl"], map=map, between="on")
    for i in range(len(data)):
        arrays = data[i].teacher["mapped_kl"]
        owner = np.repeat(np.arange(len(arrays["index"])), arrays["entry_count"])
        mass = np.bincount(owner, np.exp(arrays["entry_logmass"]), len(arrays["index"]))
        whole = mass + np.exp(arrays["rest_logmass"])
        np.testing.assert_allclose(whole, 1, atol=2e-3)
