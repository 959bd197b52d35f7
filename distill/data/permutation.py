"""Permute the numbers below n by a key, any of them alone: no list of all n is ever made.

A Feistel network permutes the numbers of some bits: their upper half is mixed with a hash of the
lower half, the halves change places, and so on. A number that comes out at n or above is put in
again until it does not (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). The hash
is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), with a key for each round.

Shape legend: n = size.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_U64 = npt.NDArray[np.uint64]

_ROUNDS = 8  # even, so that halves of different widths end where they began


class KeyedPermutation:
    """A permutation of the numbers below `size` that looks like any other, a function of the key.

    It is the same on every machine and with every version of numpy: only integers are computed
    with, modulo 2^64.

    Args:
        key: Any bytes.
        size: Numbers to permute, from 4 to 2^62. (Of fewer there are too few halves to mix.)

    Raises:
        ValueError: A size that is not.
    """

    def __init__(self, key: bytes, size: int) -> None:
        if not 4 <= size <= 2**62:
            raise ValueError(f"size is {size}, expected 4 to 2**62.")
        self.size = size
        bits = (size - 1).bit_length()
        self._widths = bits // 2, bits - bits // 2  # of the upper part and the lower
        material = hashlib.shake_256(key).digest(8 * _ROUNDS)
        self._keys = np.frombuffer(material, "<u8").astype(np.uint64)

    def __call__(self, numbers: npt.NDArray[Any]) -> Ints:
        """Return where each of (m,) numbers below `size` goes."""
        found = self._once(np.asarray(numbers).astype(np.uint64))
        while (outside := np.flatnonzero(found >= np.uint64(self.size))).size:
            found[outside] = self._once(found[outside])
        return found.astype(np.int64)

    def _once(self, numbers: _U64) -> _U64:
        upper_bits, lower_bits = self._widths
        upper, lower = numbers >> np.uint64(lower_bits), numbers & _mask(lower_bits)
        for key in self._keys:
            # The part that is mixed has the width of the upper one, and becomes the lower.
            upper, lower = lower, upper ^ (_hash(lower ^ key) & _mask(upper_bits))
            upper_bits, lower_bits = lower_bits, upper_bits
        return (upper << np.uint64(lower_bits)) | lower


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _hash(values: _U64) -> _U64:
    """Mix all bits of (m,) values."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
