"""Cut sequences into batches of at most N padded tokens.

A batch is a rectangle: all its sequences are padded to the longest. So its cost in time and memory
is its number of sequences times the length of the longest, and a token budget limits that product.
Longest first has two merits: neighbours have similar lengths, so there is little padding; and the
first batch is about as large as any, so a lack of memory shows immediately.

Nothing but lengths and budget decides the cut. The bytes of a store depend on it: which sequences
share a batch changes the last bits of their log-probabilities.
"""

from collections.abc import Iterator, Sequence

#: Padded tokens of a batch: enough to keep two cores busy, few enough for any machine.
DEFAULT_TOKENS_PER_BATCH = 8192


def by_token_budget(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut sequences into batches, longest first; of equal length, in the order given.

    Args:
        lengths: Tokens of each sequence, at least 1.
        budget: Padded tokens of a batch; a sequence that is longer is a batch of its own.

    Yields:
        The places in `lengths` of the sequences of a batch. Each is in exactly one.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        stop = start + max(1, budget // lengths[order[start]])
        yield order[start:stop]
        start = stop
