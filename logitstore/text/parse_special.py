"""Find the special tokens that stand in a text under their names, as a chat template wrote them.

A text such as `<s><|user|>Hi</s>` holds marks, not words: a student of another vocabulary could
only spell them, letter by letter. :func:`parsed` makes segments of them with a role, as
:mod:`logitstore.text.token_ids` does for rows of ids, so that they are context, an end is an event,
and each student has tokens of its own in their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from logitstore.format.numpy_types import I64
from logitstore.records import Segment
from logitstore.text.token_ids import BEGIN, END, MARK
from logitstore.text.tokenizer import ByteTokenizer


class SpecialNames:
    """The special tokens of a tokenizer, as they are spelt in a text.

    Attributes:
        pattern: A regular expression that finds each; empty where a text has none: the tokenizer
            knows no such token, or reads names in a text as letters.
    """

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        written = tokenizer.written(np.flatnonzero(~tokenizer.is_text))
        names = [name for name in map(bytes.decode, written) if tokenizer.is_special(name)]
        are_read = bool(names) and not tokenizer.is_text[_ids(tokenizer, names[0])].all()
        longest_first = sorted(names, key=len, reverse=True) if are_read else []
        self.pattern = "|".join(map(re.escape, longest_first))
        self._found = re.compile(f"({self.pattern})" if are_read else "((?!))")
        self._ends = set(_names(tokenizer, np.array(tokenizer.eos_ids, np.int64)))
        self._prefix = "".join(_names(tokenizer, tokenizer.prefix))

    def parsed(self, segments: Sequence[Segment], *, add_eos: bool) -> tuple[Segment, ...]:
        """Cut the special tokens in a text out of its segments, each to be one of its own.

        The BOS that the tokenizer would add itself is left out where the text has it.

        Args:
            segments: The text.
            add_eos: Whether its last segment is to have an end, if it has none.
        """
        kept = list(self._without_prefix(segments))
        found = [part for segment in kept for part in self._parts(segment)]
        if found and self._tokenizer.bos_token is not None and not self._prefix:
            first = found[0]
            if first.text == self._tokenizer.bos_token:
                found[0] = first._replace(role=BEGIN)
        return self._with_end(found) if add_eos else tuple(found)

    def _with_end(self, segments: list[Segment]) -> tuple[Segment, ...]:
        """Put EOS behind a text that has no end; behind an empty completion it is no event."""
        eos = self._tokenizer.eos_token
        if not segments or segments[-1].role == END or not eos:
            return tuple(segments)
        stop = max((i + 1 for i, segment in enumerate(segments) if segment.text), default=0)
        return (*segments[:stop], Segment(eos, False, END)) if stop else tuple(segments)

    def _without_prefix(self, segments: Sequence[Segment]) -> Iterator[Segment]:
        left = self._prefix if "".join(s.text for s in segments).startswith(self._prefix) else ""
        for segment in segments:
            shared = min(len(left), len(segment.text))
            left = left[shared:]
            yield segment._replace(text=segment.text[shared:])

    def _parts(self, segment: Segment) -> Iterator[Segment]:
        """Cut one segment. An end without supervised text before it is that of an empty one."""
        pieces = self._found.split(segment.text)
        if len(pieces) == 1:
            yield segment
            return
        for i, text in enumerate(pieces):
            if i % 2:
                yield Segment(text, False, END if text in self._ends else MARK)
            elif text or (segment.supervised and self._ends.intersection(pieces[i + 1 : i + 2])):
                yield segment._replace(text=text)


def _ids(tokenizer: ByteTokenizer, text: str) -> I64:
    segments = [Segment(text, True)]
    return tokenizer.encode(segments, add_eos=False, add_prefix=False).token_ids


def _names(tokenizer: ByteTokenizer, ids: I64) -> list[str]:
    return [name.decode() for name in tokenizer.written(ids)]
