"""The tokens that a text gives again are those that the teacher read, window by window.

The referee is the capture's own cutting of a row that was tokenised once, whole.
"""

from dataclasses import replace
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.capture.sequences.windows import (
    TeacherSequence,
    limits_of,
    sequences_of_row,
)
from logitstore.records import Segment, SequenceText, TokenRecords
from logitstore.testing import tiny
from logitstore.text.around_records import around_records
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.text.whole_sequence import Around, WholeSequence, head_of_row, whole_sequence
from tests.kit import templates

TEXT = {"kind": "text", "max_length": None, "add_eos": True}
FAMILIES = ("byte_bpe", "byte_bpe_bos", "unigram", "sp_bpe", "wordpiece")


@cache
def tokenizer(family: str) -> ByteTokenizer:
    made = {
        "byte_bpe": lambda: tiny.byte_bpe(320),
        "byte_bpe_bos": lambda: tiny.byte_bpe(320, bos=True),
        "unigram": tiny.unigram,
        "sp_bpe": tiny.sp_bpe,
        "wordpiece": tiny.wordpiece,
    }[family]()
    return ByteTokenizer(made)


def records_of(text: TokenizedText) -> TokenRecords:
    """The records that a capture would have of these tokens, without their predictions."""
    kept = text.has_record
    none = np.zeros(int(kept.sum()), np.float32)
    return TokenRecords(
        token_ids=text.token_ids[kept].astype(np.uint32),
        byte_starts=text.byte_starts[kept],
        byte_lengths=text.byte_lengths[kept],
        token_logprob=none,
        entry_count=none.astype(np.int64),
        entry_ids=None,
        entry_logprobs=none[:0],
        tail_logmass=none,
        entropy=none,
    )


def cut_up(family: str, segments: list[Segment], max_length: int | None) -> list[TeacherSequence]:
    of = tokenizer(family)
    text = of.encode(segments)
    whole = TeacherSequence(SequenceText(7, 0, text.status, tuple(segments)), text, len(of.prefix))
    limits = limits_of(max_length, "split", None, len(of.prefix))
    return sequences_of_row(whole, limits)


def read_again(of: ByteTokenizer, parts: list[TeacherSequence], i: int) -> WholeSequence:
    line, around = parts[i].line, None
    if line.status == "split":
        before = parts[i - 1].line if i else None
        around = Around(before, head_of_row(parts[0].line, of, TEXT))
    return whole_sequence(line, records_of(parts[i].text), of, TEXT, around)


words = st.sampled_from(
    ["the ", "teacher ", "学生", "🙂", "e\u0301", "ß", "\n", "  ", "नमस्ते ", "x", "12345", "it's "]
)
rows = st.lists(
    st.builds(Segment, st.lists(words, max_size=25).map("".join), st.booleans()),
    min_size=1,
    max_size=4,
)


def wanted(of: ByteTokenizer, part: TeacherSequence) -> list[int]:
    """The teacher's tokens, without an EOS behind context in a window: nothing says it is there."""
    ids: list[int] = part.text.token_ids.tolist()
    is_unsaid = part.line.status == "split" and not part.text.has_record[-1]
    return ids[:-1] if is_unsaid and ids[-1] == of.eos_token_id else ids


@settings(max_examples=40)
@given(st.sampled_from(FAMILIES), rows, st.sampled_from([None, 12, 20, 40]))
def test_a_row_and_each_of_its_windows_is_read_as_the_teacher_read_it(
    family: str, segments: list[Segment], max_length: int | None
) -> None:
    of = tokenizer(family)
    parts = cut_up(family, segments, max_length)
    for i, part in enumerate(parts):
        if not part.records:
            continue
        found, want = read_again(of, parts, i), wanted(of, part)
        assert found.agrees
        assert found.token_ids[found.positions].tolist() == records_of(part.text).token_ids.tolist()
        # Where the store lacks the text before a window (a long prompt was cut), a tokenizer that
        # puts a space before a text puts it there. No record is after it that is not behind text.
        first = 0
        if part.line.status == "split" and (of.adds_space or of.joins_spaces):
            first = int(np.flatnonzero(part.text.has_record)[0])
        moved = len(found.token_ids) - len(want)
        assert moved == 0 or first > 0
        assert found.token_ids[first + moved :].tolist() == want[first:]


def test_what_nothing_in_the_text_says_is_taken_from_the_records() -> None:
    """Tokens that no tokenizer makes of the text: each is where its record says."""
    of = tokenizer("byte_bpe")
    segments = (Segment("the teacher ", False), Segment("reads", True), Segment(" \nAnd", False))
    text = of.encode(segments, add_eos=False)
    letters = [of.encode([Segment(c, True)], add_eos=False).token_ids[0] for c in "reads"]
    records = records_of(text)
    spelt = replace(
        records,
        token_ids=np.array(letters, np.uint32),
        byte_starts=np.arange(5),
        byte_lengths=np.ones(5, np.int64),
    )
    line = SequenceText(0, 0, "ok", segments)
    found = whole_sequence(line, spelt, of, TEXT | {"add_eos": False})
    assert not found.agrees
    assert found.token_ids[found.positions].tolist() == letters
    written = b"".join(of.written(found.token_ids)).decode()
    assert written == "the teacher reads \nAnd"
    assert len(found.token_ids) > len(text.token_ids)


@settings(max_examples=25)
@given(st.sampled_from(FAMILIES[:2]), rows)
def test_around_the_records_of_a_text_are_the_bytes_of_the_text(
    family: str, segments: list[Segment]
) -> None:
    """The way that is taken where nothing agrees, held to one where everything does."""
    of = tokenizer(family)
    text = of.encode(segments)
    if not text.has_record.any():
        return
    line, records = SequenceText(0, 0, "ok", tuple(segments)), records_of(text)
    ids, positions = around_records(line, records, of, of.prefix)
    assert ids[positions].tolist() == records.token_ids.tolist()
    is_end = text.is_eos & text.has_record
    written = b"".join(w for w, p in zip(of.written(ids), ids, strict=True) if p != of.eos_token_id)
    begins = b"".join(of.written(of.prefix))
    assert written == begins + "".join(s.text for s in segments).encode()
    assert int((ids == of.eos_token_id).sum()) == int(is_end.sum())


def test_an_end_that_is_spelt_in_the_text_is_not_read_twice() -> None:
    made = templates.chatml()
    of = ByteTokenizer(made).with_ends([made.convert_tokens_to_ids("<|im_end|>")])
    segments = (
        Segment("<|im_start|>assistant\n", False),
        Segment("It is so.", True),
        Segment("<|im_end|>\n<|im_start|>assistant\n", False),
        Segment("", True),
        Segment("<|im_end|>\n", False),
    )
    text = of.encode(segments, add_eos=False, add_prefix=False)
    ids, positions = around_records(
        SequenceText(0, 0, "ok", segments), records_of(text), of, of.prefix[:0]
    )
    assert ids.tolist() == text.token_ids.tolist()
    assert positions.tolist() == np.flatnonzero(text.has_record).tolist()
    assert len(records_of(text)) >= 3


def test_a_hostile_record_beyond_text_and_vocabulary_reads_nothing_else() -> None:
    of = tokenizer("byte_bpe")
    line = SequenceText(0, 0, "ok", (Segment("the teacher", True),))
    text = of.encode(line.segments, add_eos=False)
    records = records_of(text)
    count = len(records)
    wild = replace(
        records,
        token_ids=np.full(count, 4_000_000, np.uint32),
        byte_starts=np.full(count, 1 << 40),
        byte_lengths=np.full(count, 60_000),
    )
    ids, positions = around_records(line, wild, of, of.prefix)
    assert ids[positions].tolist() == [4_000_000] * count
