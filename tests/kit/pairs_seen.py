"""Counts the tokens of two tokenizers that begin at one place of a text, in the plainest way."""

from collections import Counter
from collections.abc import Iterable

from logitstore.records import Segment
from logitstore.text.tokenizer import ByteTokenizer


def pairs_seen(
    teacher: ByteTokenizer, student: ByteTokenizer, texts: Iterable[str], *, first: int = 0
) -> Counter[tuple[int, int]]:
    """Count pairs of a teacher's and a student's token, both of which write the text's bytes.

    Tokens before byte `first` of a text do not count.
    """
    count: Counter[tuple[int, int]] = Counter()
    for text in texts:
        starts = [_starts(each, text) for each in (teacher, student)]
        shared = [at for at in starts[0] if at in starts[1] and at >= first]
        count.update((starts[0][at], starts[1][at]) for at in shared)
    return count


def _starts(reader: ByteTokenizer, text: str) -> dict[int, int]:
    """Find the last token that begins at each byte, of those that write what stands there."""
    tokens, data = reader.encode([Segment(text, True)]), text.encode()
    return {
        int(start): int(i)
        for i, start in zip(tokens.token_ids, tokens.text_starts, strict=True)
        if data.startswith(reader.token_bytes[i] or b"\0", start)
    }
