"""fp8 and bf16 rows: codes are torch's, rounding is what the format's page says, and no more."""

import numpy as np
import pytest
import torch

from logitstore.capture.teacher.hidden import rounded
from logitstore.format.hidden_codec import check_rows, decode_rows, fp8_values, row_bytes

#: Rows of every size that float32 has, of zeros, and of one number far above all others.
ROWS = torch.cat(
    [
        torch.randn(6, 33, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-44, 1e-38, 1e-12, 1.0, 1e5, 1e37])[:, None],
        torch.zeros(1, 33),
        torch.eye(33)[:2] * 3e38,
        torch.linspace(-448, 448, 33)[None],
    ]
)


def decoded(rows: torch.Tensor, dtype: str) -> np.ndarray:
    found = rounded(rows, dtype).rows(0, len(rows))
    return decode_rows(found.codes, found.scale)


def test_codes_are_those_of_torch() -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    np.testing.assert_array_equal(fp8_values(), theirs)
    codes = torch.arange(-(2**15), 2**15, 97, dtype=torch.int16)
    theirs = codes.view(torch.bfloat16).float()
    finite = torch.isfinite(theirs)
    ours = decode_rows(codes[finite].numpy().view(np.uint16)[:, None], None)
    np.testing.assert_array_equal(ours[:, 0], theirs[finite])


def test_rounding_is_to_the_nearest_code() -> None:
    """So no element is off by more than half a step, at any size."""
    exact = ROWS.double().numpy()
    scale = np.maximum(np.abs(exact).max(1, keepdims=True) / 448, np.finfo(np.float32).tiny)
    bound = np.maximum(np.abs(exact) / 16, scale / 1024) * (1 + 1e-6) + 1e-45
    assert (np.abs(decoded(ROWS, "fp8") - exact) <= bound).all()
    steps = np.abs(exact) / 256 * (1 + 1e-6) + 1e-40
    assert (np.abs(decoded(ROWS[:6], "bf16") - exact[:6]) <= steps[:6]).all()
    worst = np.abs(decoded(ROWS[3:4], "fp8") - exact[3:4]) / np.abs(exact[3:4])
    assert worst.max() > 1 / 32  # the bound is no idle one


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_a_row_of_the_codes_own_numbers_is_kept_as_it_is(dtype: str) -> None:
    numbers = fp8_values()[np.isfinite(fp8_values())]
    rows = torch.from_numpy(np.stack([numbers, numbers * 2.0**-7]))
    np.testing.assert_array_equal(decoded(rows, dtype), rows)


def test_what_is_no_number_is_told_and_never_read() -> None:
    rows = torch.ones(4, 5)
    rows[1, 2], rows[3, 0] = torch.nan, torch.inf
    for dtype in ("fp8", "bf16"):
        assert rounded(rows, dtype).is_finite.tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="not a finite number"):
        check_rows(np.full((1, 1), 127, np.uint8), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="not a finite number"):
        check_rows(np.ones((1, 1), np.uint8), np.full(1, np.inf, np.float32))
    for code in (0x7F80, 0xFF80, 0x7FC1):
        with pytest.raises(ValueError, match="not a finite number"):
            check_rows(np.full((1, 1), code, np.uint16), None)
    check_rows(np.full((1, 1), 126, np.uint8), np.ones(1, np.float32))
    check_rows(np.full((1, 1), 0x7F7F, np.uint16), None)


def test_a_row_takes_a_byte_a_number_and_its_scale_or_two() -> None:
    assert row_bytes(4096, "fp8") == 4100
    assert row_bytes(4096, "bf16") == 8192
