"""How much larger than its stored bytes anything in a store may become."""

#: Beyond so many decoded bytes, a file must hold at least 1 byte of data for `MAX_RATIO` decoded.
FREE_BYTES = 2 * 1024 * 1024


MAX_RATIO = 32


def check_ratio(decoded: int, stored: int) -> None:
    """Refuse bombs.

    Raises:
        ValueError: So many decoded bytes are far beyond the stored ones.
    """
    if decoded > max(FREE_BYTES, MAX_RATIO * stored):
        raise ValueError(f"{stored:,} bytes declare that they become {decoded:,}")
