"""Turn hidden states into small numbers and back: fp8 with a scale for each row, or bf16.

    fp8     e4m3 without infinities: a sign, 4 bits of exponent, 3 of fraction, 448 at most. A row x
            has the scale s = max |x| / 448 in float32, and x is read as s times the code's value.
    bf16    the upper half of float32: a sign, 8 bits of exponent, 7 of fraction

Each element is read back within half a step of its code, which is

    fp8     |x| / 16, or s / 1024 where that is more (the smallest numbers have equal steps)
    bf16    |x| / 256

Rows are encoded where they are made, by torch (`logitstore.capture.teacher.hidden`); reading needs
numpy alone. Shape legend: T = rows, D = width.
"""

from functools import cache

import numpy as np

from logitstore.format.numpy_types import F32, Array

FP8, BF16 = "fp8", "bf16"
#: The type in which each format is stored.
CODE_TYPES = {FP8: "|u1", BF16: "<u2"}
#: The largest number of e4m3; the scale of a row is its largest element divided by it.
FP8_MAX = 448.0
#: The smallest scale: the smallest normal number of float32, which divides without losing digits.
LEAST_SCALE = float(np.finfo(np.float32).tiny)
_BIAS, _FRACTION_BITS, _NAN = 7, 3, 0x7F
_BF16_EXPONENT = 0x7F80  # all ones: infinite, or no number


@cache
def fp8_values() -> F32:
    """Compute the value of each of the 256 codes of e4m3; NaN for the two that are no number."""
    codes = np.arange(256)
    exponent, fraction = codes >> _FRACTION_BITS & 0xF, codes & 0x7
    steps = np.where(exponent > 0, fraction + 8, fraction)
    values = np.ldexp(steps.astype(np.float64), np.maximum(exponent, 1) - _BIAS - _FRACTION_BITS)
    values[codes & _NAN == _NAN] = np.nan
    signed: F32 = np.where(codes >> 7, -values, values).astype(np.float32)
    return signed


def decode_rows(codes_TD: Array, scale_T: F32 | None) -> F32:
    """Decode (T, D) float32 rows.

    Args:
        codes_TD: uint8 codes of fp8, or uint16 of bf16.
        scale_T: The scale of each row of fp8; None for bf16.
    """
    if scale_T is None:
        return (codes_TD.astype(np.uint32) << 16).view(np.float32)
    rows_TD: F32 = fp8_values()[codes_TD] * scale_T[:, None]
    return rows_TD


def check_rows(codes_TD: Array, scale_T: F32 | None) -> None:
    """Check that rows are finite numbers, without decoding them.

    Raises:
        ValueError: A code or a scale is not.
    """
    no_number = _NAN if scale_T is not None else _BF16_EXPONENT
    is_good = not ((codes_TD & no_number) == no_number).any()
    # Then the largest number of a row is 448 times its scale.
    if not is_good or (scale_T is not None and not np.isfinite(scale_T * FP8_MAX).all()):
        raise ValueError("a hidden state is not a finite number")


def row_bytes(width: int, dtype: str) -> int:
    """Count the bytes of a row before compression: D + 4 in fp8, 2 D in bf16."""
    return width * np.dtype(CODE_TYPES[dtype]).itemsize + (4 if dtype == FP8 else 0)
