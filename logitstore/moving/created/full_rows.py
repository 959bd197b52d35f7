"""Make records of full rows of logits or log-probabilities, a block of them at a time.

Shape legend: n = records, V = vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import F32, I64, Array
from logitstore.moving.created import arrays
from logitstore.moving.created.given import Given
from logitstore.moving.created.logits import Kept, summarise
from logitstore.moving.created.texts import Tokens
from logitstore.writing.encode import RawRecords

#: Values of a block: 64 MB of float32.
_BLOCK_VALUES = 16 * 1024 * 1024
#: What probabilities add up to, but for rounding; what those do that were in half precision.
_ROUNDING, _HALF_PRECISION = 1e-3, 0.1


def of_full_rows(given: Given, at: I64, tokens: Tokens, kept: Kept, where: str) -> RawRecords:
    """Summarise full rows block by block.

    Args:
        given: The arrays.
        at: (n,) the row of each record.
        tokens: The tokens of the row.
        kept: What to keep of a distribution.
        where: Names the row in messages.

    Raises:
        InputError: They are not finite, or something else than their name says.
    """
    name = given.names[0]
    parts: list[dict[str, Array]] = []
    are_probabilities = True
    for n, block in _blocks(getattr(given, name), at, f"{where}: {name}"):
        _check_finite(block, at[n], f"{where}: {name}")
        if name == "logprobs":
            _check_normalised(block, given.logprobs, at[n], f"{where}: {name}")
        elif are_probabilities:
            total = block.sum(1, dtype=np.float64)
            are_probabilities = bool((block >= 0).all() and (np.abs(total - 1) <= _ROUNDING).all())
        parts.append(summarise(block, tokens.ids[tokens.places[n]], kept))
    if name == "logits" and are_probabilities:
        raise InputError(
            f"{where}: every row of logits is of numbers from 0 to 1 that add up to one, so these "
            "are probabilities. Give what the model returns before softmax, or their logarithm as "
            "logprobs=…."
        )
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return RawRecords(
        token_ids=tokens.ids[tokens.places],
        byte_starts=tokens.byte_starts,
        byte_lengths=tokens.byte_lengths,
        **whole,
    )


def _blocks(values: Any, at: I64, where: str) -> Iterator[tuple[I64, F32]]:
    """Yield (records, the rows of the array that are theirs) so that no block is large."""
    shape = arrays.shape_of(values)
    assert shape is not None
    most = max(1, _BLOCK_VALUES // shape[1])
    first = 0
    while first < len(at):
        stop = int(np.searchsorted(at, at[first] + most))
        block = arrays.floats(values[int(at[first]) : int(at[stop - 1]) + 1], where)
        yield np.arange(first, stop), block[at[first:stop] - at[first]]
        first = stop


def _check_finite(block: F32, at: I64, where: str) -> None:
    """Reject NaN, infinity, and rows in which every token is excluded."""
    largest = block.max(1)  # NaN if one is
    bad = np.flatnonzero(~np.isfinite(largest))
    if len(bad):
        t, value = int(at[bad[0]]), largest[bad[0]]
        what = "every value is -inf" if value == -np.inf else f"holds {value:g}"
        raise InputError(
            f"{where}[{t}]: {what}, expected numbers, and -inf only where the teacher excludes a "
            "token. Compute it in float32, or keep the row without records with skip()."
        )


def _check_normalised(block: F32, values: Any, at: I64, where: str) -> None:
    """Reject full rows of log-probabilities that are none."""
    is_half = getattr(getattr(values, "dtype", None), "itemsize", 4) < 4
    largest = block.max(1, keepdims=True)
    total = np.exp(block - largest).sum(1, dtype=np.float64) * np.exp(np.float64(largest[:, 0]))
    bad = np.flatnonzero(~(np.abs(total - 1) <= (_HALF_PRECISION if is_half else 10 * _ROUNDING)))
    if len(bad):
        raise InputError(
            f"{where}[{int(at[bad[0]])}]: its probabilities add up to {total[bad[0]]:.4g}, "
            "expected 1: without ids, logprobs are of the whole vocabulary. Give what the model "
            "returns before softmax as logits=…, or entries as ids=… and logprobs=…."
        )
