"""Who does a part of the work is told how much text that part has, and no more."""

import pickle

import numpy as np
import pytest

from logitstore.capture.text_sizes import TextSizes
from logitstore.format.spec import Plan

BYTES = np.array([5, 0, 9, 9, 2, 7, 9, 1, 0, 4, 6, 3], np.int64)
PLAN = Plan("d" * 64, np.array([0, 3, 4, 9, 12]))
ALL = TextSizes.of_all(BYTES, PLAN)


def test_shards_have_the_sum_of_their_rows() -> None:
    sums = [int(BYTES[first:stop].sum()) for first, stop in map(PLAN.shard_rows, range(4))]
    assert ALL.of_shards.tolist() == sums
    assert ALL.in_shards(range(4)) == BYTES.sum()
    assert ALL.in_shards([2, 0]) == sums[2] + sums[0]
    assert ALL.in_shards(range(1, 3)) == sums[1] + sums[2]
    assert ALL.in_shards([]) == 0
    assert ALL.of_largest_shard == max(sums)


@pytest.mark.parametrize("values", [BYTES, BYTES[:3], np.full(20, 4), np.arange(30) % 5])
def test_the_longest_rows_are_those_of_a_stable_sort(values: np.ndarray) -> None:
    sizes = TextSizes.of_all(values, Plan("d" * 64, np.array([0, len(values)])))
    assert sizes.longest.tolist() == np.argsort(-values, kind="stable")[:8].tolist()


def test_a_part_knows_its_rows_and_no_other() -> None:
    part = TextSizes(range(4, 9), BYTES[4:9])
    assert part.of(range(4, 9)).tolist() == BYTES[4:9].tolist()
    for row in (3, 9):
        with pytest.raises(KeyError, match=f"row {row} is not known"):
            part.of([5, row])


def test_a_trial_knows_what_it_asks_about() -> None:
    rows = np.array([1, 2, 6, 10])
    trial = ALL.for_trial(rows, ALL.longest)
    assert trial.of([6, 2]).tolist() == [9, 9]
    assert trial.longest.tolist() == ALL.longest.tolist()
    assert trial.in_shards(range(4)) == ALL.in_shards(range(4))
    with pytest.raises(KeyError, match="row 3 is not known"):
        trial.of([2, 3])


def test_what_a_trial_is_told_does_not_grow_with_the_dataset() -> None:
    rows = np.arange(200)
    told = []
    for count in (1_000, 1_000_000):
        cuts = np.linspace(0, count, 101).astype(np.int64)
        whole = TextSizes.of_all(np.full(count, 7), Plan("d" * 64, cuts))
        told.append(len(pickle.dumps(whole.for_trial(rows, whole.longest))))
    assert told[0] == told[1] < 8192
