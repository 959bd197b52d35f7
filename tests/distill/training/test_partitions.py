"""A loss whose ids are events of a partition, through training and evaluation."""

from pathlib import Path

import pytest
import torch

from distill.data.dataset import StoreDataset
from distill.head.query import Partition
from distill.training.batch_query import query_of
from distill.training.loss_terms import unpacked
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import logged, ragged_rows, trainer_of

WIDTH = len(tiny.byte_bpe())


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    return FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), tmp_path / "teacher")


def run(
    store: FakeStore,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    partition: Partition | None,
    *,
    dense: bool = False,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Train and evaluate with the ids of mapped_kl as events; None: as tokens."""
    found = {} if partition is None else {"mapped_kl": partition}
    monkeypatch.setattr(StoreDataset, "partitions", found)
    trainer = trainer_of(tiny.llama(WIDTH), store, out, eval_store=store)
    trainer.head.chunk_tokens = 16
    trainer.head.dense = dense
    trainer.train()
    return logged(trainer), trainer.evaluate()


def values(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: x for name, x in log.items() if name.endswith("loss")} for log in logs]


def test_a_partition_of_singletons_trains_and_evaluates_as_none(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        run(store, tmp_path / str(partition is None), monkeypatch, partition)
        for partition in (None, Partition(torch.arange(WIDTH), WIDTH))
    ]
    (want, want_eval), (got, got_eval) = runs
    assert values(got) == values(want)
    assert values([got_eval]) == values([want_eval])


def test_chunks_of_events_train_as_the_definition_does(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event is most of one token's mass, and a part of the next one's."""
    own_V = torch.arange(WIDTH)
    share_rV = torch.tensor([[0.7], [0.3]]).repeat(1, WIDTH)
    mixed = Partition(torch.stack([own_V, (own_V + 1) % WIDTH]), WIDTH, share_rV)
    (want, want_eval), (got, got_eval), (tokens, tokens_eval) = (
        run(store, tmp_path / name, monkeypatch, events, dense=name == "dense")
        for name, events in (("dense", mixed), ("chunks", mixed), ("tokens", None))
    )
    for a, b in zip(values([*got, got_eval]), values([*want, want_eval]), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert abs(got[0]["mapped_kl_loss"] - tokens[0]["mapped_kl_loss"]) > 0.01
    assert abs(got_eval["eval_mapped_kl_loss"] - tokens_eval["eval_mapped_kl_loss"]) > 0.01


def test_only_the_losses_that_have_a_partition_ask_for_events(
    store: FakeStore, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny.llama(WIDTH), store, tmp_path, loss="mapped_kl,alm")
    batch = unpacked(trainer.data_collator([trainer.data[i] for i in range(3)]))
    partition = Partition(torch.zeros(WIDTH, dtype=torch.int32), 1)
    plain = query_of(batch, trainer.data.options)
    grouped = query_of(batch, trainer.data.options, {"mapped_kl": partition})
    assert {name: each.partition for name, each in plain.lookups.items()} == {"mapped_kl": None}
    assert grouped.lookups["mapped_kl"].partition is partition
    assert (
        query_of(batch, trainer.data.options, {"alm": partition}).lookups.keys()
        == plain.lookups.keys()
    )
    assert grouped.part(0, 2).lookups["mapped_kl"].partition is partition
    assert grouped.indexing().lookups["mapped_kl"].partition is partition
