"""Draw from the tail of a distribution, with random numbers that depend on the token alone.

A generator with a state would give a token other numbers in another batch, on another rank, or
after a resume. Here every number is a function of where it is used, Philox4x32-10 of

    key      (seed, purpose and the high half of the row)
    counter  (block of numbers, position in the sequence, part of the row, low half of the row)

in integers alone, so it is the same on every device. A draw is the number's place in the running
sum of the tail. The sum is of integers too, 2^46 for the whole tail: a float32 sum over 128,000
columns loses the small probabilities that draws are there for, and a float sum on a GPU depends on
the order of its parts. Probabilities come from float32 log-probabilities, so a change in their last
bits (another batch, another device) moves a draw that lies within it of a column's edge, and
no other.

Refs: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
Shape legend: n = positions, V = vocabulary, S = draws, W = words, 3 = (row, part, position).
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: What numbers are for: the same place may need some of each; of experts, in each layer.
TAIL_DRAWS, GENERATION, EXPERTS = 0, 1, 2
MAX_SEED = 0xFFFF_FFFF

_LOW = 0xFFFF_FFFF
_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_WEYL = (0x9E37_79B9, 0xBB67_AE85)
_ROUNDS = 10
_WORDS = 4  # of a block
_TAIL_BITS = 46  # tail mass as an integer; running sums stay far below 2^63


class Draws(NamedTuple):
    """Holds the draws of each position.

    Attributes:
        ids: (n, S) int32, distinct draws, ascending; slots from `distinct` on hold anything.
        counts: (n, S) int32, how often each id was drawn.
        distinct: (n,) number of distinct draws; 0 where there is nothing to draw from.
    """

    ids: Tensor
    counts: Tensor
    distinct: Tensor


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Make four words of 32 random bits from a counter and a key, all int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap around, which keeps all 64 bits.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            _high(second) ^ c1 ^ k0,
            second & _LOW,
            _high(first) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def random_words(places_n3: Tensor, count: int, seed: int, purpose: int) -> Tensor:
    """Make words of 32 random bits for each place, (n, count) int64.

    Args:
        places_n3: The (row, part, position) of each token.
        count: Words for each place.
        seed: 0 to `MAX_SEED`.
        purpose: One of the constants above.
    """
    row_n, part_n, position_n = places_n3.long().unbind(1)
    blocks = torch.arange(-(-count // _WORDS), device=places_n3.device)[None, :]
    counter = (blocks, position_n[:, None], part_n[:, None], (row_n & _LOW)[:, None])
    key = (torch.full_like(row_n, seed)[:, None], (_high(row_n) | purpose << 16)[:, None])
    return torch.stack(philox(counter, key), -1).flatten(1)[:, :count]


def draw(logprobs_nV: Tensor, tail_n: Tensor, words_nW: Tensor) -> Draws:
    """Draw with replacement, each column with probability e^(logprob - tail).

    Args:
        logprobs_nV: float32; -inf where nothing may be drawn.
        tail_n: Log of the mass to draw from; -inf for none.
        words_nW: Two random words for each draw.
    """
    running_nV = running_sum(logprobs_nV, tail_n)
    total_n1 = running_nV[:, -1:].contiguous()
    target_nS = _scaled(words_nW[:, 0::2], words_nW[:, 1::2], total_n1)
    # The first column whose running sum is beyond the target; one without mass never is.
    ids_nS = torch.searchsorted(running_nV, target_nS, right=True)
    return _counted(ids_nS.clamp_(max=logprobs_nV.shape[1] - 1), total_n1.squeeze(1) > 0)


def running_sum(logprobs_nV: Tensor, tail_n: Tensor) -> Tensor:
    """Sum the share of the tail up to and with each column: (n, V) int64, in units of 2^-46."""
    least = torch.finfo(logprobs_nV.dtype).min
    share_nV = (logprobs_nV - tail_n.clamp(min=least)[:, None]).exp_()
    return share_nV.mul_(2**_TAIL_BITS).long().cumsum_(1)


def gumbel(words: Tensor) -> Tensor:
    """Make Gumbel noise, float32: the largest of logit plus noise is a draw from the softmax."""
    uniform = (words.float() + 0.5) * 2.0**-32
    # Through log1p, so that the large values, which decide, are the finely resolved ones.
    return -torch.log(-torch.log1p(-uniform))


def _scaled(high: Tensor, low: Tensor, total: Tensor) -> Tensor:
    """Compute floor(x * total / 2^64) for the 64-bit x of two words; total below 2^47."""
    total_high, total_low = total >> 32, total & _LOW
    upper, lower = high * total_low, low * total_high
    middle = (upper & _LOW) + (lower & _LOW) + _high(low * total_low)
    return high * total_high + _high(upper) + _high(lower) + (middle >> 32)


def _counted(ids_nS: Tensor, has_any_n: Tensor) -> Draws:
    """Count equal draws: each id once, ascending, with its count."""
    ids_nS = ids_nS.sort(1).values
    is_new_nS = torch.ones_like(ids_nS, dtype=torch.bool)
    is_new_nS[:, 1:] = ids_nS[:, 1:] != ids_nS[:, :-1]
    slot_nS = is_new_nS.cumsum(1) - 1
    counts_nS = torch.zeros_like(ids_nS).scatter_add_(1, slot_nS, torch.ones_like(ids_nS))
    distinct_nS = torch.zeros_like(ids_nS).scatter_(1, slot_nS, ids_nS)
    distinct_n = is_new_nS.sum(1) * has_any_n
    return Draws(distinct_nS.int(), counts_nS.int(), distinct_n)


def _high(product: Tensor) -> Tensor:
    """Return the upper 32 of 64 bits."""
    return (product >> 32) & _LOW
