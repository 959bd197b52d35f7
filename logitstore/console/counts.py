"""Write a number with the word for what it counts: `1 shard`, `1,200 shards`."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """Write a count and its word, in the singular where it is one.

    Args:
        count: How many.
        one: The word for one.
        many: The word for others; None: that with an s.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
