"""The map between vocabularies says what the teacher said, or nothing."""

import random
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.alignment.vocab_map import VocabMap, prefix_map
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer


def vocabulary(
    *token_bytes: bytes | None,
    eos_token_id: int | None = None,
    eos_ids: tuple[int, ...] = (),
    standins: tuple[int, ...] = (),
) -> ByteTokenizer:
    """Stands for a tokenizer: all that the map may ask of one."""
    ends = eos_ids or (() if eos_token_id is None else (eos_token_id,))
    fields: dict[str, Any] = {
        "token_bytes": list(token_bytes),
        "size": len(token_bytes),
        "eos_token_id": eos_token_id,
        "eos_ids": ends,
        "is_standin": np.isin(np.arange(len(token_bytes)), standins),
        "fingerprint": repr((token_bytes, eos_token_id, ends, standins)),
    }
    return cast("ByteTokenizer", SimpleNamespace(**fields))


def by_definition(teacher: ByteTokenizer, student: ByteTokenizer) -> VocabMap:
    """Every pair of tokens, as the module says it."""
    prefix, exact = [], []
    for i, b in enumerate(teacher.token_bytes):
        if i in teacher.eos_ids:
            eos = -1 if student.eos_token_id is None else student.eos_token_id
            prefix.append(eos)
            exact.append(eos)
            continue
        tokens = list(zip(student.token_bytes, student.is_standin, strict=True))
        twins = [(0, last, j) for j, (x, last) in enumerate(tokens) if b and x == b]
        begins = [
            (-len(x), last, j) for j, (x, last) in enumerate(tokens) if x and b and b.startswith(x)
        ]
        if b and b.decode("utf-8", "replace").isspace():
            begins = twins
        exact.append(min(twins, default=(0, False, -1))[2])
        prefix.append(min(begins, default=(0, False, -1))[2])
    return VocabMap(np.array(prefix, np.int32), np.array(exact, np.int32))


TOKENS = st.lists(
    st.one_of(st.none(), st.binary(max_size=3), st.text("ab \u3000é", max_size=4).map(str.encode)),
    max_size=12,
)


@given(TOKENS, TOKENS, st.sets(st.integers(0, 11)))
def test_map_is_its_definition(teacher_tokens, student_tokens, standins):
    teacher = vocabulary(*teacher_tokens, None, None, eos_ids=(len(teacher_tokens),))
    student = vocabulary(
        *student_tokens, None, eos_token_id=len(student_tokens), standins=tuple(standins)
    )
    got, expected = prefix_map(teacher, student), by_definition(teacher, student)
    np.testing.assert_array_equal(got.prefix, expected.prefix)
    np.testing.assert_array_equal(got.exact, expected.exact)
    assert got.prefix.dtype == got.exact.dtype == np.int32


def test_longest_student_token_that_begins_the_teachers_wins():
    teacher = vocabulary(b" reading", b"xyz", b"a")
    student = vocabulary(b"a", b" ", b" r", b" rea", b" readings", b"ab")
    assert prefix_map(teacher, student).prefix.tolist() == [3, -1, 0]
    assert prefix_map(teacher, student).exact.tolist() == [-1, -1, 0]


def test_white_space_maps_to_its_exact_twin_or_to_nothing():
    teacher = vocabulary(b"    ", b"  ", b"\n\n", b"\xe3\x80\x80\xe3\x80\x80", b"  x")
    student = vocabulary(b" ", b"  ", b"\n", b"\xe3\x80\x80")
    assert prefix_map(teacher, student).prefix.tolist() == [-1, 1, -1, -1, 1]


def test_all_ends_of_the_teacher_are_the_students_eos():
    teacher = vocabulary(b"a", None, None, None, eos_ids=(1, 3))
    with_eos, without = vocabulary(None, b"a", eos_token_id=0), vocabulary(None, b"a")
    assert prefix_map(teacher, with_eos).prefix.tolist() == [1, 0, -1, 0]
    assert prefix_map(teacher, with_eos).exact.tolist() == [1, 0, -1, 0]
    assert prefix_map(teacher, without).exact.tolist() == [1, -1, -1, -1]


def test_lowest_id_stands_for_students_tokens_of_the_same_bytes_unless_it_is_a_standin():
    teacher = vocabulary(b"ing", b"ings")
    assert prefix_map(teacher, vocabulary(b"x", b"ing", b"ing")).prefix.tolist() == [1, 1]
    other = vocabulary(b"x", b"ing", b"ing", standins=(1,))
    assert prefix_map(teacher, other).prefix.tolist() == [2, 2]
    alone = vocabulary(b"x", b"ing", standins=(1,))
    assert prefix_map(teacher, alone).prefix.tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram", "sp_bpe"])
def test_a_tokenizer_with_all_bytes_maps_to_itself_by_identity(kind):
    tokenizer = ByteTokenizer(getattr(tiny, kind)())
    got = prefix_map(tokenizer, tokenizer)
    for i, written in enumerate(tokenizer.token_bytes):
        if i in tokenizer.eos_ids:
            assert got.exact[i] == tokenizer.eos_token_id
        elif written is None:
            assert got.prefix[i] == got.exact[i] == -1
        else:
            # `a` and `<0x61>` write the same byte
            assert tokenizer.token_bytes[got.exact[i]] == written
            assert got.exact[i] == got.prefix[i]
            assert got.exact[i] == i or tokenizer.is_standin[i]


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram", "sp_bpe"])
def test_what_a_tokenizer_writes_maps_to_itself(kind):
    """Whatever else writes the same bytes: a target there is one that no text ever bears out.

    (Not of WordPiece, where `a` begins a word and `##a` goes on with one.)
    """
    tokenizer = ByteTokenizer(getattr(tiny, kind)())
    exact = prefix_map(tokenizer, tokenizer).exact
    texts = [*tiny.corpus(), "Ж, ж; 龍, a,b  c"]
    written = np.unique([i for t in texts for i in tokenizer.encode([Segment(t, True)]).token_ids])
    written = written[tokenizer.is_text[written]]
    assert len(written) > 50
    np.testing.assert_array_equal(exact[written], written)


def test_every_word_of_a_tokenizer_finds_a_student_token_that_it_begins_with():
    teacher, student = ByteTokenizer(tiny.unigram()), ByteTokenizer(tiny.byte_bpe())
    prefix = prefix_map(teacher, student).prefix
    for i, written in enumerate(teacher.token_bytes):
        if written is not None and not written.isspace():
            assert prefix[i] >= 0, "a byte-level student has every first byte"
            found = student.token_bytes[prefix[i]]
            assert found is not None
            assert written.startswith(found)


def test_vocabularies_of_real_size_take_a_moment():
    random.seed(0)
    words = [bytes(random.choices(b"etaoinsh ", k=random.randint(1, 12))) for _ in range(150_000)]
    teacher, student = vocabulary(*words), vocabulary(*random.sample(words, 128_000))
    began = time.perf_counter()
    prefix_map(teacher, student)
    assert time.perf_counter() - began < 5  # 0.2 s measured; the room is for a loaded machine


def test_a_pair_of_fingerprints_is_mapped_once_and_no_one_can_spoil_it():
    teacher, student = vocabulary(b"ab", b"a"), vocabulary(b"a", b"b")
    made = prefix_map(teacher, student)
    assert prefix_map(vocabulary(b"ab", b"a"), student) is made
    assert prefix_map(student, teacher) is not made
    with pytest.raises(ValueError, match="read-only"):
        made.prefix[0] = 1
    for i in range(9):  # the least recently used one goes
        prefix_map(vocabulary(bytes([i])), student)
    assert prefix_map(teacher, student) is not made
    assert prefix_map(teacher, student).prefix.tolist() == made.prefix.tolist()
