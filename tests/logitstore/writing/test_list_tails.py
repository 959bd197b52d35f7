"""What the tail of a list is worth: 1 - sum, of log-probabilities as they come."""

import numpy as np
import torch

from logitstore.writing.lists.lists import Lists, tails
from tests.kit.same_rows import SUMMED

V, K, N = 49_152, 16, 24


def peaked() -> torch.Tensor:
    """(N, V) logits, of which one is far above all others."""
    logits = torch.randn(N, V, generator=torch.Generator().manual_seed(0)) * 3 + 5
    logits[:, 7] += 20
    return logits


def tails_of(logprobs: torch.Tensor) -> np.ndarray:
    entries, ids = logprobs.double().topk(K, 1)
    lists = Lists(np.full(N, K), ids.flatten().numpy(), entries.flatten().numpy())
    return np.exp(tails(lists, V))


def test_a_tail_is_as_good_as_the_sum_of_its_list() -> None:
    """The claim of docs/capture.md: a serving engine's float32 log_softmax costs up to 4e-5."""
    exact = peaked().double().log_softmax(1)
    wanted = exact.sort(1, descending=True).values[:, K:].exp().sum(1).numpy()
    np.testing.assert_allclose(tails_of(exact), wanted, atol=1e-12)
    off = np.abs(tails_of(peaked().log_softmax(1)) - wanted).max()
    assert 2e-6 < off < SUMMED
