"""Two stores of the same rows that different engines made: equal, up to rounding."""

from collections.abc import Sequence

import numpy as np

from logitstore.format.logprob_codec import TAIL_STEP, TOKEN_STEP
from logitstore.records import TokenRecords
from logitstore.store import LogitStore


def agree(
    one: LogitStore, other: LogitStore | Sequence[TokenRecords], longest_nats: float = 0.05
) -> None:
    """Records of the same tokens; the same ids but at ties; values within a step of their codes."""
    assert len(one) == len(other) > 0
    for i in range(len(one)):
        if isinstance(other, LogitStore):
            assert one.text(i) == other.text(i)
        a, b = one[i], other[i]
        for name in ("token_ids", "byte_starts", "byte_lengths", "entry_count"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
        np.testing.assert_allclose(a.token_logprob, b.token_logprob, atol=1.01 * TOKEN_STEP)
        np.testing.assert_allclose(a.tail_logmass, b.tail_logmass, atol=2.01 * TAIL_STEP)
        p, q = a.padded(), b.padded()
        np.testing.assert_allclose(p.logprobs, q.logprobs, atol=longest_nats)
        assert p.ids is not None
        assert q.ids is not None
        for t in range(len(a)):
            surely = p.logprobs[t] > p.logprobs[t, -1] + longest_nats
            assert set(p.ids[t, surely].tolist()) <= set(q.ids[t].tolist())
