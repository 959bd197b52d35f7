"""Headers of Parquet as Thrift's compact protocol defines them, and what is no such header."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.format.parquet_limits import _Thrift

TRUE, BYTE, I32, I64, DOUBLE, BINARY, LIST, STRUCT = 1, 3, 5, 6, 7, 8, 9, 12


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the highest bit."""
    digits = [number & 127]
    while number := number >> 7:
        digits.append(number & 127)
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def integer(value: int) -> bytes:
    """Zigzag: 0, -1, 1, -2 are 0, 1, 2, 3."""
    return varint(2 * value if value >= 0 else -2 * value - 1)


def struct(*fields: tuple[int, int, bytes], spelt: bool = False) -> bytes:
    """Fields of (number, type, bytes); `spelt`: each with its number, not the step to it."""
    data, before = b"", 0
    for number, kind, value in fields:
        is_step = not spelt and 0 < number - before < 16
        head = bytes([(number - before) << 4 | kind]) if is_step else bytes([kind])
        data += head + (b"" if is_step else integer(number)) + value
        before = number
    return data + b"\0"


def read(data: bytes) -> dict[int, Any]:
    return _Thrift(data)._struct(0)


@given(st.dictionaries(st.integers(1, 300), st.integers(-(2**63), 2**63 - 1)), st.booleans())
def test_integers_are_read_whatever_their_size_and_the_way_to_their_field(
    values: dict[int, int], spelt: bool
) -> None:
    fields = [(number, I64, integer(values[number])) for number in sorted(values)]
    assert read(struct(*fields, spelt=spelt)) == values


def test_what_is_not_looked_at_is_stepped_over() -> None:
    inner = struct((1, I32, integer(7)))
    data = struct(
        (1, TRUE, b""),
        (2, BYTE, b"x"),
        (3, DOUBLE, b"8 bytes."),
        (4, BINARY, varint(3) + b"abc"),
        (5, LIST, bytes([2 << 4 | I32]) + integer(1) + integer(-1)),
        (6, LIST, bytes([15 << 4 | TRUE]) + varint(20) + b"\1" * 20),
        (7, STRUCT, inner),
        (40, I32, integer(9)),
    )
    found = read(data)
    assert found == {1: True, 2: None, 3: None, 4: None, 5: [1, -1], 6: None, 7: {1: 7}, 40: 9}
    for cut in range(len(data)):
        with pytest.raises(ValueError, match=r"cut off|longer than its data"):
            read(data[:cut])


WRONG = {
    "a field twice": (struct((2, I32, b"\0"), (2, I32, b"\0"), spelt=True), "out of order"),
    "a field too late": (struct((2, I32, b"\0"), (1, I32, b"\0"), spelt=True), "out of order"),
    "field 0": (struct((0, I32, b"\0"), spelt=True), "out of order"),
    "a number of 71 bits": (struct((1, I64, b"\xff" * 10 + b"\0")), "too long"),
    "a type that is none": (struct((1, 13, b"")), "not written here"),
    "structs in each other": (b"\x1c" * 40 + b"\0" * 41, "nested too deeply"),
    "lists in each other": (struct((1, LIST, b"\x19" * 40 + b"\0")), "nested too deeply"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_header_is_refused(name: str) -> None:
    data, says = WRONG[name]
    with pytest.raises(ValueError, match=says):
        read(data)
