"""A batch is as large as the records it was made of, and says what rectangles of them would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill.alignment.map_entries import VocabularyMap
from distill.alignment.runs import lists_of
from distill.data.collator import Collator
from distill.data.dataset import StoreDataset
from distill.data.ragged import rectangles, tensors_of
from distill.student.encoder_decoder import Sides
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import ragged_rows, settings

K = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of the student's own tokenizer, so that every record has a pair."""
    tokenizer = tiny.byte_bpe()
    folder = tmp_path_factory.mktemp("tokenizer")
    more = {"logit_std": True, "draws": 16}
    return FakeStore.from_teacher(
        tiny.llama(len(tokenizer)), tokenizer, ragged_rows(), folder, top_k=K, **more
    )


def tensors_in(batch: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor that travels, by its path."""
    found = {}
    for key, value in batch.items():
        inner = value if isinstance(value, dict) else {}
        found |= {f"{key}.{name}": each for name, each in tensors_in(inner).items()}
        if isinstance(value, Tensor):
            found[key] = value
    return found


def bytes_of(tensors: dict[str, Tensor]) -> int:
    return sum(each.nbytes for each in tensors.values())


def batch_of(store: FakeStore, *losses: str, sides: Sides | None = None) -> dict[str, Any]:
    student = ByteTokenizer(tiny.byte_bpe())
    data = StoreDataset(store, student, losses)
    batch: dict[str, Any] = Collator(student.pad_id, losses, sides=sides)(
        data.__getitems__(range(len(data)))
    )
    return batch


#: What of the decoded records each loss is about, besides a few numbers a record.
READ = {
    "uld": ["entry_logprobs", "tail_logmass", "token_logprob"],
    "mapped_kl": ["entry_ids", "entry_logprobs", "tail_logmass"],
    "tail_kl": ["entry_ids", "entry_logprobs", "tail_logmass"],
    "sampled_kl": ["entry_ids", "entry_logprobs", "tail_logmass", "sample_ids"],
    "alm": ["token_logprob"],
}
FEW_BYTES = 24  # of a record: its index, counts, scales


@pytest.mark.parametrize("name", READ)
def test_bytes_to_the_device_are_those_of_the_decoded_record(store: FakeStore, name: str) -> None:
    teacher = batch_of(store, name)["teacher"][name]
    records = sum(len(each) for each in store.records)
    decoded = sum(getattr(each, key).nbytes for each in store.records for key in READ[name])
    draws = sum(len(each.sample_ids) for each in store.records) if name == "sampled_kl" else 0
    assert bytes_of(teacher) <= decoded + 4 * draws + FEW_BYTES * records + 4 * (K + 16)


def test_losses_together_are_no_larger_than_each_alone(store: FakeStore) -> None:
    both = batch_of(store, "uld", "mapped_kl")["teacher"]
    alone = sum(bytes_of(batch_of(store, name)["teacher"][name]) for name in both)
    assert bytes_of(tensors_in(both)) == alone


@pytest.mark.parametrize("sides", [None, Sides(1, 2, 0)])
def test_nothing_that_travels_is_wider_than_32_bits_but_the_numbers_of_rows(
    store: FakeStore, sides: Sides | None
) -> None:
    names = [*READ, "multilevel_ot"]
    found = tensors_in(batch_of(store, *names, sides=sides))
    assert {key for key, each in found.items() if each.element_size() > 4} == {"row"}
    assert found["attention_mask"].dtype == torch.bool


# ---- flat = rectangle ----


@given(st.lists(st.integers(0, 5), max_size=6), st.data())
def test_a_rectangle_is_its_lists_padded(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    floats = st.floats(-9, 0, width=32)
    logmass = data.draw(st.lists(floats, min_size=total, max_size=total))
    arrays = {
        "entry_count": np.array(counts, np.int32),
        "entry_ids": np.arange(total, dtype=np.int32),
        "entry_logmass": np.array(logmass, np.float32),
        "index": np.arange(len(counts)),
    }
    found = rectangles(tensors_of(arrays))
    assert found.keys() == {"entry_ids", "entry_logmass", "index"}
    assert found["entry_ids"].shape == (len(counts), max(counts, default=0))
    assert found["entry_ids"].shape == found["entry_logmass"].shape
    assert found["index"].dtype == torch.int64
    start = 0
    for p, count in enumerate(counts):
        padding = found["entry_ids"].shape[1] - count
        ids = [*range(start, start + count), *[-1] * padding]
        assert found["entry_ids"][p].tolist() == ids
        own = [*arrays["entry_logmass"][start : start + count].tolist(), *[-np.inf] * padding]
        assert found["entry_logmass"][p].tolist() == own
        start += count


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_the_lists_of_some_records_are_each_taken_whole(
    counts: list[int], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8))
    ends = np.cumsum(counts)
    count, (flat,) = lists_of(np.array(counts), np.array(chosen, int), np.arange(ends[-1]))
    assert count.tolist() == [counts[i] for i in chosen]
    want = [x for i in chosen for x in range(ends[i] - counts[i], ends[i])]
    assert flat.tolist() == want


# ---- sent through a map ----


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    spread=st.sampled_from([1, 5, 2**25]),
    seed=st.integers(0, 999),
    is_injective=st.booleans(),
)
def test_masses_that_meet_are_added_up_and_none_is_lost(
    counts: list[int], spread: int, seed: int, is_injective: bool
) -> None:
    """Every record against a dictionary; ids so large that the sort needs 64 bits, too."""
    rng = np.random.default_rng(seed)
    known = 60
    target = rng.permutation(known) if is_injective else rng.integers(0, 20, known)
    target = (spread * target).astype(np.int32)
    target[rng.random(known) < 0.2] = -1
    ids = np.concatenate([rng.permutation(known)[:count] for count in counts]).astype(np.uint32)
    logprobs = np.log(rng.random(len(ids)) + 1e-6).astype(np.float32)
    mapping = VocabularyMap.of_ids(target)
    assert not (is_injective and mapping.shares.any())
    sent = mapping.send(np.array(counts), ids, logprobs)
    first = at = 0
    for p, count in enumerate(counts):
        want: dict[int, float] = {}
        for token, logprob in zip(ids[at : at + count], logprobs[at : at + count], strict=True):
            want[target[token]] = want.get(target[token], 0) + float(np.exp(np.float64(logprob)))
        nowhere = want.pop(-1, 0.0)
        mine = slice(first, first + sent.count[p])
        assert len(set(sent.ids[mine])) == sent.count[p]  # distinct
        found = dict(zip(sent.ids[mine], np.exp(sent.logmass[mine].astype(float)), strict=True))
        assert found == pytest.approx(want, rel=1e-5)
        left = 0.0 if sent.left_out is None else sent.left_out[p]
        assert left == pytest.approx(nowhere, rel=1e-6)
        first, at = first + sent.count[p], at + count
    assert first == len(sent.ids) == len(sent.logmass)


def test_what_nothing_meets_keeps_its_bits() -> None:
    """A sum of one is not made: no mass goes through an exponential and back."""
    mapping = VocabularyMap.of_ids(np.array([5, 5, 2, -1], np.int32))
    logprobs = np.float32([-0.3, -1.7, -2.9, -4.1])
    sent = mapping.send(np.array([4]), np.array([2, 0, 3, 1], np.uint32), logprobs)
    assert sent.ids.tolist() == [2, 5]
    assert sent.logmass[0] == logprobs[0]


def test_nothing_is_pinned_without_an_accelerator(tmp_path: Path) -> None:
    """torch would warn in every run on a CPU, about a setting that nobody made."""
    found = settings(tmp_path, use_cpu=False).dataloader_pin_memory
    assert found is torch.accelerator.is_available()
