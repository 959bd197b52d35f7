"""Limit how much larger than its stored bytes decoded data may be, against decompression bombs."""

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
