"""Tell which tokens of a sequence stand in which of its segments.

A token lies in the segment that has its first byte. A token that ends a turn has no byte: it stands
behind the last byte of the turn that it ends, in front of what the template writes next.
"""

from collections.abc import Iterator
from typing import Any

Facts = dict[str, Any]


def tokens_by_segment(found: Facts) -> Iterator[tuple[Facts | None, list[int]]]:
    """Yield each segment with the numbers of its tokens; context has none.

    Tokens that are in no segment (an end behind a text whose last segment is context) come last,
    with None for their segment.

    Args:
        found: What `sequence_facts` returns.
    """
    tokens, segments = found["tokens"], found["segments"]
    shown, stop = 0, found["supervised_start"]
    for i, segment in enumerate(segments):
        first = shown
        if segment["supervised"]:
            stop += len(segment["text"].encode())
            while shown < len(tokens) and tokens[shown]["byte_start"] < stop:
                shown += 1
            shown += _ends_here(tokens[shown:], stop, segments[i + 1 :])
        yield segment, list(range(first, shown))
    if shown < len(tokens):
        yield None, list(range(shown, len(tokens)))


def _ends_here(tokens: list[Facts], stop: int, following: list[Facts]) -> int:
    """Count the tokens, of those not yet shown, that end the turn whose last byte is at `stop`."""
    behind = next((each for each in following if each["text"] or not each["supervised"]), None)
    if behind is not None and behind["supervised"]:  # the turn goes on
        return 0
    ends = 0
    while ends < len(tokens) and tokens[ends]["is_end"] and tokens[ends]["byte_start"] == stop:
        ends += 1
    is_last = not any(each["supervised"] for each in following)
    return ends if is_last else min(ends, 1)  # an empty turn behind it ends at the same byte
