"""Map places of a text to places in its supervised bytes, and back.

Supervised text comes in *stretches*, with context between them. A token belongs to the stretch of
its first supervised byte: what it writes before that byte is its head, what it writes behind the
stretch is its tail.

Shape legend: T = tokens of the text.
"""

from collections.abc import Sequence

import numpy as np

from logitstore.format.numpy_types import I64, Bools
from logitstore.records import Segment


class SupervisedBytes:
    """A map between the bytes of a text and its supervised bytes.

    Args:
        segments: The text, in order; at least one is not empty.

    Attributes:
        total_bytes: Supervised bytes.
        text_bytes: Bytes of the text.
        at_end: Whether the text ends in a supervised segment.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        bounds: list[int] = []
        before: list[int] = []
        supervised: list[bool] = []
        stretches: list[list[int]] = []
        place = counted = 0
        for text, is_supervised, _ in segments:
            if not text:
                continue
            size = len(text.encode())
            bounds.append(place)
            before.append(counted)
            if is_supervised and supervised and supervised[-1]:
                stretches[-1][1] = place + size
            elif is_supervised:
                stretches.append([place, place + size, counted])
            supervised.append(is_supervised)
            place += size
            counted += size * is_supervised
        self.total_bytes, self.text_bytes, self.at_end = counted, place, supervised[-1]
        self._is_whole = len(supervised) == 1 and supervised[0]
        self._bounds, self._before = np.array(bounds, np.int64), np.array(before, np.int64)
        self._is_supervised = np.array(supervised, np.bool_)
        starts, ends, counts = np.array(stretches, np.int64).reshape(-1, 3).T
        self._stretch_starts, self._stretch_ends, self._stretch_before = starts, ends, counts

    def project(self, starts: I64, ends: I64) -> tuple[I64, I64, Bools]:
        """Project tokens' spans in the text onto its supervised bytes.

        A token without width belongs to the segment of the byte that follows it.

        Returns:
            (T,) supervised bytes before each token, (T,) within it, (T,) whether it is supervised.
        """
        first, is_inside = self._place(starts)
        lengths = self._place(ends)[0] - first
        return first, lengths, (lengths > 0) | ((starts == ends) & is_inside)

    def before_place(self, places: I64) -> I64:
        """Count the supervised bytes before each place of the text."""
        return self._place(places)[0]

    def crossings(self, starts: I64, ends: I64, first: I64, lengths: I64) -> tuple[I64, I64]:
        """Measure what tokens write outside the stretch that they belong to.

        Args:
            starts: (T,) first byte in the text.
            ends: (T,) byte after the last.
            first: (T,) supervised bytes before the token.
            lengths: (T,) supervised bytes within it.

        Returns:
            (T,) bytes before its first supervised byte; (T,) bytes behind the stretch. Both 0 for a
            token without supervised bytes.
        """
        if len(self._is_supervised) == 1 or not len(self._stretch_starts):
            return np.zeros_like(starts), np.zeros_like(starts)
        places, _, stops = self.places(first)
        has_bytes = lengths > 0
        return (
            np.where(has_bytes, places - starts, 0),
            np.where(has_bytes, np.maximum(ends - stops, 0), 0),
        )

    def places(self, first: I64) -> tuple[I64, I64, I64]:
        """Find supervised bytes in the text, by their numbers; there must be a stretch.

        Returns:
            (T,) the place of each; (T,) where its stretch starts; (T,) where that ends.
        """
        stretch = np.searchsorted(self._stretch_before, first, side="right") - 1
        starts = self._stretch_starts[stretch]
        places = starts + first - self._stretch_before[stretch]
        return places, starts, self._stretch_ends[stretch]

    def begins_stretch(self, first: I64) -> Bools:
        """Tell of supervised bytes (T,), by their numbers, whether a stretch starts there."""
        return np.isin(first, self._stretch_before)

    def context_of(self, stretch_start: int, stretch_end: int) -> tuple[int, int]:
        """Find where the context before a stretch starts, and where that behind it ends."""
        before = self._stretch_ends[self._stretch_ends < stretch_start]
        behind = self._stretch_starts[self._stretch_starts > stretch_end]
        start = int(before[-1]) if len(before) else 0
        return start, int(behind[0]) if len(behind) else self.text_bytes

    def _place(self, places: I64) -> tuple[I64, Bools]:
        if self._is_whole:
            return places.copy(), np.ones(len(places), np.bool_)
        segment = np.searchsorted(self._bounds, places, side="right") - 1
        inside = self._is_supervised[segment]
        return self._before[segment] + np.where(inside, places - self._bounds[segment], 0), inside
