"""Limit how much larger than its stored bytes decoded data may be, against decompression bombs."""

from collections.abc import Iterable
from typing import NamedTuple

#: Decoded bytes that any data may have.
FREE_BYTES = 2 * 1024 * 1024
#: Beyond those, the most decoded bytes for each stored one.
MAX_RATIO = 32


def check_ratio(decoded: int, stored: int) -> None:
    """Raise ValueError if a few stored bytes declare that they decode to very many.

    Raises:
        ValueError: `decoded` is above `FREE_BYTES` and above `MAX_RATIO` times `stored`.
    """
    if decoded > max(FREE_BYTES, MAX_RATIO * stored):
        raise ValueError(f"{stored:,} bytes declare that they become {decoded:,}")


class Cost(NamedTuple):
    """What reading some values costs.

    Attributes:
        decoded: Bytes of the values.
        whole: Bytes of all chunks that hold them: a chunk is decoded whole.
        stored: Stored bytes of those chunks.
    """

    decoded: int = 0
    whole: int = 0
    stored: int = 0

    def check(self) -> None:
        """Raise ValueError if the values, or the chunks around them, are a bomb.

        Chunks may have a few megabytes more: those of a small sequence are mostly its neighbours',
        or the zeros behind the last.

        Raises:
            ValueError: They are far larger than their stored bytes.
        """
        check_ratio(self.decoded, self.stored)
        check_ratio(self.whole - FREE_BYTES, self.stored)


def total(costs: Iterable[Cost]) -> Cost:
    """Add up costs, amount by amount."""
    return Cost(*map(sum, zip(Cost(), *costs, strict=True)))
