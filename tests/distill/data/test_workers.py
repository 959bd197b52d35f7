"""Workers read a store on disk however they are started, also one that the parent has read from."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from distill.data.collator import Collator
from distill.data.dataset import StoreDataset
from logitstore.text.tokenizer import ByteTokenizer
from tools.text_store import texts, tokenizers, write_store

LOSSES = ("uld", "mapped_kl")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StoreDataset:
    rows = texts(12, 300)
    teacher, student = tokenizers(rows, 300, 400)
    store = write_store(tmp_path_factory.mktemp("workers") / "store", teacher, rows)
    return StoreDataset(store, ByteTokenizer(student), LOSSES)


def batches(data: StoreDataset, **how: Any) -> list[dict[str, Any]]:
    collate = Collator(data.reader.tokenizer.pad_id, LOSSES)
    return list(DataLoader(data, batch_size=5, collate_fn=collate, **how))


#: Their workers import torch anew.
SLOW = [pytest.param(each, marks=pytest.mark.slow) for each in ("forkserver", "spawn")]


@pytest.mark.parametrize("method", ["fork", *SLOW])
def test_workers_of_every_kind_make_the_batches_of_none(data: StoreDataset, method: str) -> None:
    want = batches(data)  # the parent's files are open and mapped when workers begin
    found = batches(data, num_workers=2, multiprocessing_context=method)
    assert len(found) == len(want) == 3
    for got, expected in zip(found, want, strict=True):
        assert got["row"].tolist() == expected["row"].tolist()
        torch.testing.assert_close(got["input_ids"], expected["input_ids"], rtol=0, atol=0)
        torch.testing.assert_close(got["teacher"], expected["teacher"], rtol=0, atol=0)
