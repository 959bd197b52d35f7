"""How sequences are cut into batches of a token budget."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from logitstore.text.token_budget import by_token_budget

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
BUDGETS = st.integers(1, 200)


@given(LENGTHS, BUDGETS)
def test_every_sequence_is_in_one_batch(lengths: list[int], budget: int) -> None:
    cut = by_token_budget(lengths, budget)
    assert sorted(i for batch in cut for i in batch) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_no_batch_is_over_budget_but_one_of_a_single_sequence(
    lengths: list[int], budget: int
) -> None:
    for batch in by_token_budget(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(LENGTHS, BUDGETS)
def test_a_batch_is_full(lengths: list[int], budget: int) -> None:
    """One sequence more, of the next batch, would be over budget."""
    for one, _ in pairwise(by_token_budget(lengths, budget)):
        assert (len(one) + 1) * max(lengths[i] for i in one) > budget


@given(LENGTHS, BUDGETS)
def test_the_longest_come_first_and_equals_in_the_order_given(
    lengths: list[int], budget: int
) -> None:
    read = [i for batch in by_token_budget(lengths, budget) for i in batch]
    assert read == sorted(read, key=lambda i: (-lengths[i], i))
