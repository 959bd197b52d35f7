"""Two stores of the same rows that different engines made: equal, up to rounding."""

from collections.abc import Sequence

import numpy as np

from logitstore.format.logprob_codec import TAIL_STEP, TOKEN_STEP
from logitstore.records import TokenRecords
from logitstore.store import LogitStore

#: What 1 - sum misses of a tail where the sum is of float32 log-probabilities over 49,152 ids:
#: torch's log_softmax on a CPU is off by up to 3.5e-5 (see logitstore/writing/test_list_tails.py).
SUMMED = 5e-5


def agree(
    one: LogitStore,
    other: LogitStore | Sequence[TokenRecords],
    longest_nats: float = 0.05,
    tail_mass: float = 0.0,
) -> None:
    """Records of the same tokens; the same ids but at ties; values within a step of their codes.

    Args:
        one, other: The stores, or one and the records that it is to have.
        longest_nats: What coarser codes move of improbable entries.
        tail_mass: What the mass of a tail may differ by besides, for an engine that leaves it out.
    """
    assert len(one) == len(other) > 0
    for i in range(len(one)):
        if isinstance(other, LogitStore):
            assert one.text(i) == other.text(i)
        a, b = one[i], other[i]
        for name in ("token_ids", "byte_starts", "byte_lengths", "entry_count"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
        np.testing.assert_allclose(a.token_logprob, b.token_logprob, atol=1.01 * TOKEN_STEP)
        tails = np.exp(b.tail_logmass.astype(np.float64))
        off = np.abs(np.exp(a.tail_logmass.astype(np.float64)) - tails)
        assert (off <= tail_mass + tails * np.expm1(2.01 * TAIL_STEP)).all(), off.max()
        p, q = a.padded(), b.padded()
        np.testing.assert_allclose(p.logprobs, q.logprobs, atol=longest_nats)
        assert p.ids is not None
        assert q.ids is not None
        for t in range(len(a)):
            surely = p.logprobs[t] > p.logprobs[t, -1] + longest_nats
            assert set(p.ids[t, surely].tolist()) <= set(q.ids[t].tolist())
