"""A plan: every row in one shard, each of about the size that was asked for, and not too many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.writing.plan import DEFAULT_SHARD_TEXT_BYTES, MOST_SHARDS, make_plan


@given(st.lists(st.integers(0, 90), min_size=1, max_size=80), st.integers(1, 200))
def test_a_shard_begins_where_the_text_before_it_passes_a_multiple_of_the_size(
    text_bytes: list[int], size: int
) -> None:
    """A byte is counted for each row, too."""
    starts, total, at = [], 0, -1
    for row, count in enumerate(text_bytes):
        if total // size != at:
            starts, at = [*starts, row], total // size
        total += count + 1
    made = make_plan("d", np.array(text_bytes, np.int64), size)
    assert list(made.boundaries) == [*starts, len(text_bytes)]


@pytest.mark.parametrize("row_bytes", [10, 1_000, 1_000_000])
def test_a_store_has_no_more_shards_than_it_can_open_unless_they_are_asked_for(
    row_bytes: int,
) -> None:
    """A million rows, up to a terabyte: the default grows as it must, and no more."""
    text_bytes = np.full(1_000_000, row_bytes, np.int64)
    made = make_plan("d", text_bytes)
    total = int((text_bytes + 1).sum())
    assert made.shard_count <= MOST_SHARDS
    least = -(-total // max(DEFAULT_SHARD_TEXT_BYTES, total / MOST_SHARDS + 1))
    assert made.shard_count >= 0.9 * least
    asked = make_plan("d", text_bytes[:300_000], row_bytes)
    assert asked.shard_count > MOST_SHARDS
