"""Records sit at the tokens that they predict: held to a live teacher, and through a DataLoader."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitstore import open_store
from logitstore.errors import InputError
from logitstore.records import PADDING_ID, Example
from logitstore.store import LogitStore
from logitstore.testing import tiny
from tests.kit import templates
from tests.kit.made_stores import put
from tests.kit.talks import TALKS, capture

TEXT = "The teacher reads a page, and the student writes of the old river. "


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("teachers"), {}
    for name, make in {"llama3": templates.llama3, "chatml": templates.chatml}.items():
        tokenizer = make()
        made[name] = tiny.save(folder / name, tiny.llama(len(tokenizer)), tokenizer)
    return made


@pytest.fixture(scope="module")
def stores_of(
    teachers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LogitStore]:
    """A store of every kind of row: texts, prompts, conversations, token ids, windows of them."""
    folder = tmp_path_factory.mktemp("stores")
    talks = [{"messages": talk} for talk in TALKS]
    long = [{"messages": templates.turns(TEXT * 3, TEXT, "And?", TEXT * 2)}, *talks]
    ids = AutoTokenizer.from_pretrained(teachers["llama3"])(TEXT).input_ids
    rows: dict[str, tuple[str, Any, dict[str, Any]]] = {
        "texts": ("llama3", [{"text": TEXT}, {"text": ""}, {"text": "x"}], {"draws": 2}),
        "prompts": ("chatml", [{"prompt": "Who?", "completion": " " + TEXT}], {}),
        "long prompts": ("chatml", [{"prompt": TEXT * 3, "completion": TEXT}], {"max_length": 40}),
        "conversations": ("llama3", talks, {"temperatures": [2.0], "logit_std": True}),
        "other conversations": ("chatml", talks, {"max_tail": 0.5}),
        "windows": ("llama3", long, {"max_length": 40}),
        "windows, none shared": ("chatml", long, {"max_length": 40, "stride": 0}),
        "ids": ("llama3", [{"input_ids": ids}, {"input_ids": ids[5:]}], {"ids": False}),
        "truncated": ("llama3", [{"text": TEXT * 4}], {"max_length": 30, "overflow": "truncate"}),
    }
    return {
        name: capture(teachers[teacher], given, folder / name, **settings)
        for name, (teacher, given, settings) in rows.items()
    }


@cache
def loaded(teacher: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(teacher)


def live(store: LogitStore, example: Example) -> torch.Tensor:
    """(L, V) log-probabilities of the teacher, at the token that each row predicts."""
    model = loaded(store.provenance["teacher"])
    with torch.no_grad():
        logits = model(torch.from_numpy(example.input_ids)[None]).logits[0]
    return torch.log_softmax(torch.cat([torch.zeros_like(logits[:1]), logits[:-1]]), -1)


KINDS = (
    "texts",
    "prompts",
    "long prompts",
    "conversations",
    "other conversations",
    "windows",
    "windows, none shared",
    "ids",
    "truncated",
)


@pytest.mark.parametrize("kind", KINDS)
def test_records_sit_at_the_tokens_that_they_predict(
    stores_of: dict[str, LogitStore], kind: str
) -> None:
    store = stores_of[kind]
    seen = 0
    for i in range(len(store)):
        example, records = store.example(i), store[i]
        assert example.agrees
        assert example.text == store.text(i)
        assert example.input_ids[example.positions].tolist() == records.token_ids.tolist()
        assert np.flatnonzero(example.loss_mask).tolist() == example.positions.tolist()
        assert (example.labels >= 0).tolist() == example.loss_mask.tolist()
        seen += len(records)
        if not len(records):
            assert len(example) == 0
            continue
        # Every token before the last record is in what predicted it, so all of them are held.
        logp = live(store, example)[example.positions]
        own = logp[torch.arange(len(records)), torch.from_numpy(records.token_ids.astype(int))]
        np.testing.assert_allclose(records.token_logprob, own, atol=2e-3)
        np.testing.assert_allclose(records.entropy, -(logp.exp() * logp).sum(-1), atol=5e-3)
    assert seen > 20


def test_a_conversation_is_all_that_the_template_wrote(
    stores_of: dict[str, LogitStore], teachers: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teachers["llama3"])
    for i, talk in enumerate(TALKS):
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        assert stores_of["conversations"].example(i).input_ids.tolist() == ids


def test_several_are_read_as_one_by_one(stores_of: dict[str, LogitStore]) -> None:
    store = stores_of["windows"]
    for i, example in enumerate(store.examples(range(len(store)))):
        np.testing.assert_array_equal(example.input_ids, store.example(i).input_ids)
        assert example.text == store.text(i)


def test_what_is_placed_stands_at_its_record(stores_of: dict[str, LogitStore]) -> None:
    example = stores_of["conversations"].example(1)
    records = example.records
    entropy = example.placed(records.entropy)
    assert np.isnan(entropy[~example.loss_mask]).all()
    np.testing.assert_array_equal(entropy[example.positions], records.entropy)
    assert example.placed(records.padded().logprobs, -np.inf).shape == (len(example), 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_loader_takes_a_store_as_it_is(stores_of: dict[str, LogitStore], kind: str) -> None:
    store = stores_of[kind]
    data = store.torch()
    batches = list(DataLoader(data, batch_size=3))
    assert sum(len(batch["row"]) for batch in batches) == int((store.token_counts > 0).sum())
    for batch in batches:
        for b, number in enumerate(batch["sequence"].tolist()):
            example = store.example(number)
            here = {name: values[b] for name, values in batch.items()}
            length, records = len(example), example.records
            assert here["row"] == example.text.row
            assert here["input_ids"][:length].tolist() == example.input_ids.tolist()
            assert here["attention_mask"].sum() == length
            assert here["labels"].tolist()[:length] == example.labels.tolist()
            assert here["labels"][length:].eq(-100).all()
            at = here["loss_mask"]
            assert at.nonzero()[:, 0].tolist() == example.positions.tolist()
            np.testing.assert_array_equal(here["tail_logmass"][at], records.tail_logmass)
            entries, kept = records.padded(), here["entry_mask"]
            assert kept.sum() == len(records.entry_logprobs)
            np.testing.assert_array_equal(here["entry_logprobs"][kept], records.entry_logprobs)
            assert here["entry_logprobs"][~kept].eq(-torch.inf).all()
            assert ("entry_ids" in here) == (records.entry_ids is not None)
            if entries.ids is not None:
                np.testing.assert_array_equal(here["entry_ids"][kept], records.entry_ids)
                assert here["entry_ids"][~kept].eq(-100).all()
                assert PADDING_ID not in here["entry_ids"]
            total = here["entry_logprobs"].exp().sum(-1) + here["tail_logmass"].exp()
            torch.testing.assert_close(total[at], torch.ones(int(at.sum())), atol=1e-5, rtol=0)


def test_blocks_that_a_store_has_are_in_its_batches(stores_of: dict[str, LogitStore]) -> None:
    of_talks = next(iter(DataLoader(stores_of["conversations"].torch(), batch_size=2)))
    assert of_talks["lognorm"].shape == (*of_talks["labels"].shape, 1)
    assert {"logit_std", "lognorm_std"} <= set(of_talks)
    of_texts = next(iter(DataLoader(stores_of["texts"].torch(), batch_size=2)))
    drawn = of_texts["sample_counts"] > 0
    assert of_texts["sample_ids"][~drawn].eq(-100).all()
    assert of_texts["sample_counts"].sum(-1)[of_texts["loss_mask"]].eq(2).all()


def test_a_store_itself_is_taken_and_keeps_its_order(stores_of: dict[str, LogitStore]) -> None:
    store = stores_of["texts"]  # the second row is empty
    (batch,) = DataLoader(store, batch_size=3)
    assert batch["sequence"].tolist() == [0, 1, 2]
    assert batch["attention_mask"].sum(1).tolist() == [len(store.example(i)) for i in range(3)]
    assert batch["attention_mask"][1].sum() == 0


def test_fewer_entries_leave_their_mass_to_the_tail(stores_of: dict[str, LogitStore]) -> None:
    batch = next(iter(DataLoader(stores_of["conversations"].torch(k=3), batch_size=9)))
    assert batch["entry_ids"].shape[-1] == 3
    at = batch["loss_mask"]
    total = batch["entry_logprobs"].exp().sum(-1) + batch["tail_logmass"].exp()
    torch.testing.assert_close(total[at], torch.ones(int(at.sum())), atol=1e-5, rtol=0)


def test_a_seed_gives_the_same_order_everywhere_and_an_epoch_another(
    stores_of: dict[str, LogitStore],
) -> None:
    store = stores_of["windows"]
    orders = []
    for epoch in range(3):
        one, other = store.torch(seed=5), store.torch(seed=5)
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        assert one.sequences.tolist() == other.sequences.tolist()
        assert sorted(one.sequences.tolist()) == store.torch().sequences.tolist()
        orders.append(tuple(one.sequences.tolist()))
    assert len({*orders, tuple(store.torch().sequences.tolist())}) == 4
    # Of a generator with this state, whatever the version of numpy or torch.
    drawn = np.random.Generator(np.random.PCG64([5, 1])).permutation(store.torch().sequences)
    assert orders[1] == tuple(drawn.tolist())


def batches_of(data: Any, **how: Any) -> list[list[int]]:
    return [batch["input_ids"].flatten().tolist() for batch in DataLoader(data, 3, **how)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_workers_read_what_one_process_reads(stores_of: dict[str, LogitStore]) -> None:
    data = stores_of["windows"].torch(seed=1)
    want = batches_of(data)
    assert batches_of(data, num_workers=2, multiprocessing_context="fork") == want


def test_a_dataset_travels_to_another_process(stores_of: dict[str, LogitStore]) -> None:
    data = stores_of["windows"].torch(seed=1)
    want = batches_of(data)  # with the tokenizer loaded
    assert batches_of(pickle.loads(pickle.dumps(data))) == want


@pytest.mark.slow
def test_spawned_workers_read_what_one_process_reads(stores_of: dict[str, LogitStore]) -> None:
    data = stores_of["windows"].torch(seed=1)
    want = batches_of(data)
    assert batches_of(data, num_workers=2, multiprocessing_context="spawn") == want


def test_wrong_settings_are_refused(tmp_path: Path, stores_of: dict[str, LogitStore]) -> None:
    store = stores_of["texts"]
    with pytest.raises(InputError, match="k is 0, expected the number of entries"):
        store.torch(k=0)
    with pytest.raises(InputError, match="seed is -1, expected 0 or more"):
        store.torch(seed=-1)
    put(tmp_path / "s")
    with pytest.raises(InputError, match="AutoTokenizer cannot load it"):
        open_store(tmp_path / "s").example(0)
    with pytest.raises(IndexError):
        store.example(99)
