"""The sequences of a run are numbered as in a list of them, which is never made."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.held import Held


@given(st.lists(st.booleans(), max_size=40))
def test_it_is_the_list_of_what_is_held(flags: list[bool]) -> None:
    held_n, values = np.array(flags, bool), np.arange(len(flags)) * 3
    held, expected = Held(held_n), np.flatnonzero(held_n)
    assert len(held) == len(expected)
    assert [held[i] for i in range(len(held))] == expected.tolist()
    assert list(held) == expected.tolist()
    assert held.of(values).tolist() == (3 * expected).tolist()
    for i in (-len(held) - 1, len(held)):
        with pytest.raises(IndexError):
            held[i]


def test_of_all_nothing_is_copied_and_nothing_is_listed() -> None:
    counts = np.arange(1, 1001)
    held = Held(counts > 0)
    assert held.of(counts) is counts
    assert sum(each.nbytes for each in vars(held).values() if isinstance(each, np.ndarray)) == 0
