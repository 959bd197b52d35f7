"""Hold the library's spans and alignments to `tools.plain_tokens`, text by text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distill.alignment.align import Spans, align
from distill.data.targets import student_spans
from logitstore.records import Segment
from logitstore.text.crossings import find_crossings
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from tools.plain_tokens import Label, Piece, PlainTokenizer, groups, labels, shared_starts


class Pair(NamedTuple):
    """A tokenizer as the library reads it, and as the definition does."""

    ours: ByteTokenizer
    plain: PlainTokenizer

    @classmethod
    def of(cls, tokenizer: Any) -> "Pair":
        """Read a tokenizer twice."""
        ours = ByteTokenizer(tokenizer)
        return cls(ours, PlainTokenizer(tokenizer, ours.eos_ids))


class Read(NamedTuple):
    """One text by one tokenizer, read twice. Labels are known by their number in the sequence."""

    ours: TokenizedText
    plain: list[Label]

    def numbers(self) -> list[int]:
        """List the numbers of the library's labels."""
        found: list[int] = np.flatnonzero(self.ours.has_record).tolist()
        return found

    def sure(self) -> set[int]:
        """Find the labels that write the very bytes of the text: of others only that is said."""
        return {label.number for label in self.plain if label.token.is_sure}


def read(pair: Pair, pieces: Sequence[Piece], *, wrapped: bool = True) -> Read:
    """Read a text both ways, and check that each label lies where the definition has it."""
    segments = [Segment(text, is_supervised) for text, is_supervised in pieces]
    ours = pair.ours.encode(segments, add_eos=wrapped, add_prefix=wrapped)
    tokens = pair.plain.read(pieces, wrapped=wrapped)
    found = Read(ours, labels(tokens, pieces))
    assert ours.status in ("ok", "no_supervised_text", "empty")
    assert ours.token_ids[: len(tokens)].tolist() == [token.id for token in tokens]
    unsure = {n for n, token in enumerate(tokens) if not token.is_sure}
    assert {*found.numbers()} - unsure == found.sure()
    spans = student_spans(ours)
    kept = _as_a_store_has_them(segments, pair.ours, ours)
    place = dict(zip(found.numbers(), range(len(ours.token_ids)), strict=False))
    for label in found.plain:
        if label.number in found.sure():
            _compare(label, spans, ours, place[label.number])
            _compare(label, kept, ours, place[label.number])
    return found


def _as_a_store_has_them(
    segments: Sequence[Segment], tokenizer: ByteTokenizer, tokens: TokenizedText
) -> Spans:
    """Place the labels from what a store keeps of them: ids and supervised bytes."""
    has = tokens.has_record
    ids, starts, lengths = tokens.token_ids[has], tokens.byte_starts[has], tokens.byte_lengths[has]
    found = find_crossings(segments, tokenizer, ids, starts, lengths, tokens.is_eos[has])
    return Spans(starts, found.lengths, tokens.is_eos[has], *found[1:])


def _compare(label: Label, spans: Spans, ours: TokenizedText, n: int) -> None:
    token, sizes = label.token, (len(label.head), len(label.tail))
    mine = spans.starts[n], spans.lengths[n], spans.is_eos[n], spans.heads[n], spans.tails[n]
    assert mine == (label.read, label.stop - label.read, token.is_end, *sizes), token
    assert (spans.has_added_space[n], spans.is_verbatim[n]) == (token.has_added_space, True), token
    if not token.is_end:
        where = ours.text_starts[label.number], ours.text_ends[label.number]
        assert where == (token.start, token.end), token


def assert_same_pairs(teacher: Read, student: Read) -> int:
    """Compare what the library pairs with the definition, where tokens write the text's bytes.

    Returns:
        How many shared starts there are.
    """
    found = align(student_spans(teacher.ours), student_spans(student.ours))
    t, s = teacher.numbers(), student.numbers()
    ours = {(t[a], s[b]) for a, b in found.shared_starts.tolist()}
    runs = {(*t[a:b], -1, *s[c:d]) for a, b, c, d in found.groups.tolist()}
    mine = [[label.number for label in side.plain] for side in (teacher, student)]
    plain = {(mine[0][a], mine[1][b]) for a, b in shared_starts(teacher.plain, student.plain)}
    closed = {
        (*mine[0][a:b], -1, *mine[1][c:d]) for a, b, c, d in groups(teacher.plain, student.plain)
    }
    sure = teacher.sure(), student.sure()
    for expected, got in ((plain, ours), (closed, runs)):
        differs = [each for each in expected ^ got if _is_sure(each, *sure)]
        assert not differs, _said(min(differs), each_in="ours" if min(differs) in got else "plain")
    return len(plain)


def _is_sure(numbers: Sequence[int], teacher: set[int], student: set[int]) -> bool:
    cut = numbers.index(-1) if -1 in numbers else 1
    return {*numbers[:cut]} <= teacher and {*numbers[cut:]} - {-1} <= student


def _said(numbers: Sequence[int], each_in: str) -> str:
    return f"tokens of teacher and student {numbers}: a pair of {each_in} alone"
