"""Of several losses it is logged how much each covers, not only how much they do together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import logged, ragged_rows, trainer_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.unigram()
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, ragged_rows(), folder, logit_std=True
    )


def covered(arrays: dict[str, Any]) -> int:
    """Labels that a pair of the loss covers: each is listed in an array whose name says so."""
    listed = [each for name, each in arrays.items() if name == "index" or name.endswith("_index")]
    return len(set(np.concatenate(listed).tolist()))


@pytest.mark.parametrize("uncovered", ["hard", "none"])
def test_each_of_several_losses_says_how_much_it_covers(
    store: FakeStore, tmp_path: Path, uncovered: str
) -> None:
    names = ["uld", "mapped_kl", "alm", "multilevel_ot"]
    trainer = trainer_of(
        tiny.llama(300), store, tmp_path, eval_store=store, loss=",".join(names), max_steps=1,
        uncovered=uncovered,
    )  # fmt: skip
    trainer.train()
    data = trainer.data
    labels = sum(int(data[i].is_label.sum()) for i in range(len(data)))
    counts = {name: sum(covered(data[i].teacher[name]) for i in range(len(data))) for name in names}
    assert len(set(counts.values())) > 2  # they differ, and none is their union
    union = sum(data[i].aligned for i in range(len(data)))
    assert max(counts.values()) <= union
    expected = {f"covered_fraction_{name}": n / labels for name, n in counts.items()}
    expected["covered_fraction"] = union / labels
    entry, evaluated = logged(trainer)[0], trainer.evaluate()
    for name, share in expected.items():
        assert entry[name] == pytest.approx(share)
        assert evaluated[f"eval_{name}"] == pytest.approx(share)


def test_one_loss_says_it_once(store: FakeStore, tmp_path: Path) -> None:
    trainer = trainer_of(
        tiny.llama(300), store, tmp_path, eval_store=store, loss="uld", max_steps=1
    )
    trainer.train()
    for entry in (logged(trainer)[0], trainer.evaluate()):
        assert [name for name in entry if "covered_fraction" in name] in (
            ["covered_fraction"],
            ["eval_covered_fraction"],
        )
