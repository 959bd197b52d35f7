"""Check that a store's ids decode to its text, with its own tokenizer and without transformers.

The bytes of a token must be the bytes of the text at the record's place. Three exceptions are made,
as in a capture: tokens without bytes, tokens that are cut where supervised text begins or ends, and
one space that some tokenizers put in front. A tokenizer with a normaliser (NFC, lower case) may
decode to other bytes than it encoded, so a text that does not survive encoding and decoding is not
checked.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from logitstore.errors import in_a_line
from logitstore.models.loading import check_vocabulary
from logitstore.records import SequenceText
from logitstore.storage.files import MAX_TOKENIZER_BYTES, read_file
from logitstore.text.token_bytes import written_bytes

log = logging.getLogger(__name__)


class Placed(Protocol):
    """Tokens that lie in the supervised text of a row, as records do, or the tokens of a row."""

    @property
    def token_ids(self) -> npt.NDArray[Any]: ...
    @property
    def byte_starts(self) -> npt.NDArray[Any]: ...
    @property
    def byte_lengths(self) -> npt.NDArray[Any]: ...


class TextCheck:
    """A check of records against their text, by the tokenizer of a store's teacher.

    Args:
        rewritten: Encodes a text with it, and returns the bytes that the tokens write.
        written: The bytes of each of its tokens; None for an id without a token.
        only_starts: Whether a record shares only its start with its token: where it ends is a
            student's business.
    """

    def __init__(
        self,
        rewritten: Callable[[str], bytes],
        written: Sequence[bytes | None],
        only_starts: bool = False,
    ) -> None:
        self._rewritten, self._written = rewritten, written
        self._fits = _begins if only_starts else _fits

    @classmethod
    def from_folder(cls, folder: Path, only_starts: bool = False) -> "TextCheck | None":
        """Load the tokenizer of a store; None if the tokenizers library is missing or fails."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            return None
        try:
            check_vocabulary(folder)
            raw = read_file(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
            tokenizer = Tokenizer.from_buffer(raw)
            vocabulary = tokenizer.get_vocab()
            size = max(vocabulary.values(), default=-1) + 1
            written = written_bytes(json.loads(raw), vocabulary, size)
        except Exception as e:  # the library raises the bare class, and any part may be missing
            log.warning(
                "%s: cannot be loaded here (%s), so ids are not compared with the text.",
                folder,
                in_a_line(e),
            )
            return None

        def rewritten(text: str) -> bytes:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            return b"".join(written[i] or b"" for i in ids)

        return cls(rewritten, written, only_starts)

    def disagreement(self, line: SequenceText, records: Placed) -> str | None:
        """Describe the first record whose id does not decode to its text, or return None."""
        text = line.supervised_bytes
        edges = _edges(line)
        for t in range(len(records.token_ids)):
            start = int(records.byte_starts[t]) - line.supervised_start
            stop = start + int(records.byte_lengths[t])
            token = int(records.token_ids[t])
            written = self._written[token] if token < len(self._written) else None
            if start == stop or self._fits(written, text, start, stop, edges):
                continue
            if self._survives(line):
                return f"record {t}: token {token} writes {written!r}, not {text[start:stop]!r}"
            return None
        return None

    def _survives(self, line: SequenceText) -> bool:
        """Return whether encoding and decoding leave this text unchanged."""
        data = "".join(s.text for s in line.segments)
        return self._rewritten(data) in (data.encode(), b" " + data.encode())


def _edges(line: SequenceText) -> set[int]:
    """Return the ends of the supervised segments, in bytes of supervised text; 0 is one, too."""
    edges, place = {0}, 0
    for segment in line.segments:
        if segment.supervised:
            place += len(segment.text.encode())
            edges.add(place)
    return edges


def _fits(written: bytes | None, text: bytes, start: int, stop: int, edges: set[int]) -> bool:
    if written is None:
        return False
    span = text[start:stop]
    if written in (span, b" " + span):
        return True
    # The token was cut at an edge: the rest must be its beginning, its end or its middle.
    at_start, at_stop = start in edges, stop in edges
    if at_start and at_stop:
        return span in written
    return (at_start and written.endswith(span)) or (at_stop and written.startswith(span))


def _begins(written: bytes | None, text: bytes, start: int, stop: int, edges: set[int]) -> bool:
    """Tell whether a token writes what the text has from `start` on, as far as both go."""
    if written is None:
        return True  # a special token, where supervised text ends
    edge = min((e for e in edges if e > start), default=len(text))
    rest = text[start:edge]
    # At an edge the token may begin before it.
    tails = range(len(written) + 1) if start in edges else (0, int(written[:1] == b" "))
    return any(_agree(written[n:], rest) for n in tails)


def _agree(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)
