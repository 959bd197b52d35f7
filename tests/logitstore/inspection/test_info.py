"""`info` sums fidelity up as a bound on ULD, and the bound holds."""

import math
from pathlib import Path

import numpy as np
import pytest

from logitstore import open_store
from logitstore.format.spec import StoreSpec
from logitstore.info import facts, info_text, uld_within
from logitstore.testing import stores
from tests.kit.made_stores import put

VARIANTS = {
    "short heads": stores.spec(top_k=3),
    "ragged": stores.spec(max_tail=0.2, top_k=10),
    "nothing outside": stores.spec(vocab_size=30, top_k=30),
}


def exact_and_stored(of: StoreSpec, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per record: exact ULD against some student, that from the store, and |stored tail|."""
    store, exact, cut, tails = open_store(path), [], [], []
    rng = np.random.default_rng(5)
    for row in range(12):
        pieces = stores.row_pieces(row)
        if not pieces:
            continue
        records = store[row].padded(of.top_k)
        logits = stores.random_logits(of, len(pieces) + 1, np.random.default_rng(1000 + row))
        teacher = -np.sort(-np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True))), 1)
        student = -np.sort(-rng.dirichlet(np.full(of.vocab_size, 0.02), len(teacher)), 1)
        exact.append(np.abs(teacher - student).sum(1))
        head = np.where(records.mask, np.exp(records.logprobs.astype(np.float64)), 0.0)
        mine = np.where(records.mask, student[:, : of.top_k], 0.0)
        tail = np.exp(store[row].tail_logmass.astype(np.float64))
        cut.append(np.abs(head - mine).sum(1) + np.abs(1 - mine.sum(1) - tail))
        tails.append(tail)
    return np.concatenate(exact), np.concatenate(cut), np.concatenate(tails)


@pytest.mark.parametrize("name", VARIANTS)
def test_uld_from_a_store_is_within_what_info_says(tmp_path: Path, name: str) -> None:
    of = put(tmp_path / "s", VARIANTS[name])
    within = uld_within(open_store(tmp_path / "s"))
    exact, cut, _ = exact_and_stored(of, tmp_path / "s")
    gap = np.abs(exact - cut)
    assert gap.mean() <= within["mean"] + 1e-6
    assert gap.max() <= within["worst"] + 1e-6
    assert np.quantile(gap, 0.99) <= within["p99"] + 1e-6
    assert within["mean"] <= within["p99"] <= within["worst"] <= 2
    if name == "short heads":
        assert gap.max() > 0.05, "the bound is tried on something"


def test_the_worst_is_that_of_the_worst_record(tmp_path: Path) -> None:
    of = put(tmp_path / "s", VARIANTS["short heads"])
    store = open_store(tmp_path / "s")
    largest = max(math.exp(store[i].tail_logmass.max()) for i in range(12) if len(store[i]))
    worst = min(2 * largest + store.fidelity.l1_max, 2.0)
    assert uld_within(store)["worst"] == pytest.approx(worst, rel=1e-2)
    assert of.top_k == 3


def test_info_says_it_in_words(tmp_path: Path) -> None:
    put(tmp_path / "s")
    said = info_text(facts(open_store(tmp_path / "s")))
    line = next(line for line in said.splitlines() if line.startswith("ULD"))
    assert "from this store is within 1." in line
    assert line.endswith("at worst")
