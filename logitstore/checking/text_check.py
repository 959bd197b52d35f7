"""Do the ids of a store say its text? Checked with the store's own tokenizer, without transformers.

A token's bytes must be the text's bytes at the record's place, but for what capturing allows: an
event without bytes, a token cut where supervised text begins or ends, one space that some
tokenizers put in front. A normaliser (NFC, lower case) may write other bytes than it read; a text
that does not survive the tokenizer unchanged is not held to its bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logitstore.records import SequenceText, TokenRecords
from logitstore.storage.files import read_file
from logitstore.text.token_bytes import written_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_TOKENIZER_BYTES = 256 * 1024 * 1024


class TextCheck:
    """A store's tokenizer, as far as checking needs it."""

    def __init__(self, tokenizer: "Tokenizer", written: Sequence[bytes | None]) -> None:
        self._tokenizer, self._written = tokenizer, written

    @classmethod
    def from_folder(cls, folder: Path) -> "TextCheck | None":
        """None without the tokenizers library, or where it cannot read this tokenizer."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            return None
        try:
            raw = read_file(folder / "tokenizer.json", _MAX_TOKENIZER_BYTES)
            tokenizer = Tokenizer.from_buffer(raw)
            vocabulary = tokenizer.get_vocab()
            size = max(vocabulary.values(), default=-1) + 1
            return cls(tokenizer, written_bytes(json.loads(raw), vocabulary, size))
        except Exception:  # the library raises the bare class, and any part may be missing
            return None

    def disagreement(self, line: SequenceText, records: TokenRecords) -> str | None:
        """Where ids and text differ, or None."""
        text = line.supervised_bytes
        edges = _edges(line)
        for t in range(len(records)):
            start = int(records.byte_starts[t]) - line.supervised_start
            stop = start + int(records.byte_lengths[t])
            token = int(records.token_ids[t])
            written = self._written[token] if token < len(self._written) else None
            if start == stop or _fits(written, text, start, stop, edges):
                continue
            if self._survives(line):
                return f"record {t}: token {token} writes {written!r}, not {text[start:stop]!r}"
            return None
        return None

    def _survives(self, line: SequenceText) -> bool:
        """Whether the tokenizer writes this text as it reads it."""
        data = "".join(s.text for s in line.segments)
        ids = self._tokenizer.encode(data, add_special_tokens=False).ids
        written = b"".join(self._written[i] or b"" for i in ids)
        return written in (data.encode(), b" " + data.encode())


def _edges(line: SequenceText) -> set[int]:
    """Where supervised segments begin and end, in their own bytes."""
    found, place = {0}, 0
    for segment in line.segments:
        if segment.supervised:
            place += len(segment.text.encode())
            found.add(place)
    return found


def _fits(written: bytes | None, text: bytes, start: int, stop: int, edges: set[int]) -> bool:
    if written is None:
        return False
    span = text[start:stop]
    if written in (span, b" " + span):
        return True
    # Cut by an edge: what is left must be the beginning, the end or the middle of the token.
    at_start, at_stop = start in edges, stop in edges
    if at_start and at_stop:
        return span in written
    return (at_start and written.endswith(span)) or (at_stop and written.startswith(span))
