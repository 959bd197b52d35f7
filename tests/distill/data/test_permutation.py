"""A keyed permutation, against its definition in plain integers, and against chance."""

import hashlib
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data import row_order
from distill.data.permutation import KeyedPermutation
from distill.data.row_order import RowOrder


def by_definition(key: bytes, size: int, number: int) -> int:
    """Eight rounds of a Feistel network on Python's integers, again until the number is below."""
    bits = (size - 1).bit_length()
    material = hashlib.shake_256(key).digest(64)
    while True:
        a, b = bits // 2, bits - bits // 2
        upper, lower = number >> b, number % 2**b
        for i in range(8):
            mixed = lower ^ int.from_bytes(material[8 * i : 8 * i + 8], "little")
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
            upper, lower = lower, upper ^ ((mixed ^ (mixed >> 31)) % 2**a)
            a, b = b, a
        number = (upper << b) + lower
        if number < size:
            return number


@given(st.binary(max_size=9), st.integers(4, 3000))
def test_every_number_is_there_once_and_is_what_the_definition_says(key: bytes, size: int) -> None:
    found = KeyedPermutation(key, size)(np.arange(size))
    assert sorted(found.tolist()) == list(range(size))
    for number in range(0, size, max(1, size // 7)):
        assert found[number] == by_definition(key, size, number)


@pytest.mark.parametrize("size", [10**9, 2**33 + 1, 2**62])
def test_single_numbers_of_many_are_what_the_definition_says(size: int) -> None:
    numbers = np.array([0, 1, 2, size // 2, size - 1])
    found = KeyedPermutation(b"k", size)(numbers)
    assert found.tolist() == [by_definition(b"k", size, n) for n in numbers.tolist()]


@pytest.mark.parametrize("size", [3, 0, 2**62 + 1])
def test_a_size_that_is_none_is_rejected(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}, expected 4 to"):
        KeyedPermutation(b"", size)


def test_it_looks_like_chance() -> None:
    """Where numbers go, over 2,000 keys: each place as often, neighbours as far apart as others."""
    size, keys = 24, 2_000
    found = np.stack([KeyedPermutation(b"%d" % k, size)(np.arange(size)) for k in range(keys)])
    expected = keys / size
    for column in (found.T, (found[:, 1:] - found[:, :-1]).T % size):
        for each in column:
            counts = np.bincount(each, minlength=size)[int(column is not found.T) :]
            free = len(counts) - 1
            chi = ((counts - counts.mean()) ** 2 / expected).sum()
            assert abs(chi - free) < 6 * np.sqrt(2 * free)
    many = KeyedPermutation(b"one key", 100_000)(np.arange(100_000))
    assert abs(np.corrcoef(many, np.arange(100_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.02


@settings(max_examples=10)
@given(st.integers(20, 120), st.integers(1, 4), st.integers(0, 2), st.booleans())
def test_the_order_of_many_rows_has_the_laws_of_that_of_few(
    rows: int, step_rows: int, epoch: int, is_grouped: bool
) -> None:
    lengths = np.arange(rows) % 7 if is_grouped else None

    def order(seed: int = 0, epoch: int = epoch) -> list[int]:
        made = RowOrder(rows, seed, "a", lengths)
        made.step_rows, made.epoch = step_rows, epoch
        return list(made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_order, "MOST_SHUFFLED", 10)
        patch.setattr(row_order, "_MOST_AT_ONCE", 50)
        found = order()
        assert sorted(found) == list(range(rows))
        assert found == order()
        assert found not in (order(seed=1), order(epoch=epoch + 1))
        steps = [found[i : i + step_rows] for i in range(0, rows, step_rows)]
        if is_grouped:
            assert all(sorted(s, key=lambda r: -(r % 7)) == s for s in steps)


def test_of_a_billion_rows_no_list_is_made() -> None:
    tracemalloc.start()
    first = list(itertools.islice(RowOrder(10**9, 0, "a"), 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(first)) == 1000
    assert peak < 20 * 2**20
