"""Rows grouped by length: the seeded order, dealt out so that a step's rows are of like length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.row_order import RowOrder, window_of
from distill.training.trainer import CachedTeacherTrainer
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit import curves
from tests.kit.curves import Record, assert_same, curve
from tests.kit.students import ragged_rows
from tests.kit.two_ranks import SAVED_STEP, Noting, prepared

#: Of four rows each, so two or three epochs of 32 rows.
STEPS = {"max_steps": max(16, curves.STEPS), "train_sampling_strategy": "group_by_length"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    return FakeStore.from_teacher(
        teacher, tokenizer, ragged_rows() * 4, tmp_path_factory.mktemp("teacher")
    )


def order_of(
    lengths: list[int] | None, step_rows: int = 1, *, rows: int = 0, seed: int = 1, epoch: int = 0
) -> list[int]:
    array = None if lengths is None else np.array(lengths)
    made = RowOrder(rows or len(lengths or ()), seed, "a", array)
    made.step_rows, made.epoch = step_rows, epoch
    return list(made)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=700),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_grouped_rows_are_each_there_once_near_where_they_were(
    lengths: list[int], step_rows: int, epoch: int
) -> None:
    grouped = order_of(lengths, step_rows, epoch=epoch)
    plain = order_of(None, rows=len(lengths), epoch=epoch)
    count = len(lengths) // step_rows
    whole, size = count * step_rows, window_of(count) * step_rows
    for start in range(0, whole, size):
        stop = min(start + size, whole)
        assert sorted(grouped[start:stop]) == sorted(plain[start:stop])
    assert sorted(grouped[whole:]) == sorted(plain[whole:])  # an incomplete step comes last


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 3))
def test_no_row_is_shorter_than_one_of_a_step_of_shorter_rows(
    lengths: list[int], step_rows: int
) -> None:
    """Of those that are sorted together."""
    grouped, count = order_of(lengths, step_rows), len(lengths) // step_rows
    for start in range(0, count, window_of(count)):
        numbers = range(start, min(start + window_of(count), count))
        steps = [[lengths[r] for r in grouped[i * step_rows :][:step_rows]] for i in numbers]
        found = [length for step in sorted(steps, reverse=True) for length in step]
        assert found == sorted(found, reverse=True)


def test_in_the_next_epoch_other_rows_meet() -> None:
    """Also where an epoch has fewer steps than could be sorted together."""
    epochs = [order_of([5, 9, 2, 7] * 10, 2, epoch=e) for e in range(2)]
    first, second = ({frozenset(e[i : i + 2]) for i in range(0, 40, 2)} for e in epochs)
    assert len(first & second) < 10


def test_a_grouped_order_is_that_of_seed_epoch_store_and_rows_of_a_step() -> None:
    lengths = [3, 9, 5, 4, 2, 7, 1, 8, 6, 10, 12, 14, 13, 16, 15, 11, 17]
    assert order_of(lengths, 2) == [8, 2, 15, 7, 16, 14, 12, 10, 3, 0, 9, 5, 13, 1, 4, 6, 11]
    others = [
        order_of(lengths, 1),
        order_of(lengths, 2, seed=2),
        order_of(lengths, 2, epoch=1),
        order_of(lengths[::-1], 2),
    ]
    assert len({tuple(o) for o in [order_of(lengths, 2), *others]}) == 5


def steps_of(trainer: Any) -> list[list[int]]:
    """The rows of each step, in order."""
    assert isinstance(trainer, Noting)
    rows = [row for rows in trainer.rows for row in rows]
    return [rows[at : at + 4] for at in range(0, len(rows), 4)]


def test_a_step_has_the_same_rows_however_it_is_cut_and_wherever_the_run_was_interrupted(
    store: FakeStore, tmp_path: Path, record_property: Record
) -> None:
    """Every eighth step ends an epoch, so the checkpoint lies in the middle of one."""
    cuts = {"a": (4, 1), "b": (1, 4)}
    runs = {
        name: prepared(
            store,
            tmp_path / name,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=parts,
            **STEPS,
        )
        for name, (batch, parts) in cuts.items()
    }
    curves = {name: curve(run) for name, run in runs.items()}
    assert steps_of(runs["a"]) == steps_of(runs["b"])
    assert len(steps_of(runs["a"])) == STEPS["max_steps"]
    assert_same(record_property, "by length: 4 x 1 = 1 x 4", curves["b"], curves["a"])
    how = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    again = prepared(store, tmp_path / "c", **how, **STEPS)
    found = curve(again, checkpoint=str(tmp_path / "a" / f"checkpoint-{SAVED_STEP}"))
    assert steps_of(again) == steps_of(runs["a"])[SAVED_STEP:]
    assert_same(record_property, "by length, resumed as 2 x 2 = 1 x 4", found, curves["a"])


def test_grouping_saves_padding_and_leaves_evaluation_as_it_is(
    store: FakeStore, tmp_path: Path
) -> None:
    def cells(run: CachedTeacherTrainer) -> int:
        return sum(batch["input_ids"].numel() for batch in run.get_train_dataloader())

    how = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    plain, grouped = (
        prepared(store, tmp_path, eval_store=store, **how, **(STEPS | more))
        for more in ({"train_sampling_strategy": "random"}, {})
    )
    assert cells(grouped) < cells(plain)
    assert grouped.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
