"""The map between vocabularies says what the teacher said, or nothing."""

from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from distill.alignment.make_map import KINDS, make_map
from distill.losses.mapped_kl import LOSS
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
        "name": "vocabulary",
        "joins_spaces": False,
        "to_json": Tokenizer(BPE()).to_str,  # it writes no text: maps by bytes alone ask for none
        "fingerprint": repr((token_bytes, eos_token_id, ends, standins)),
    }
    return cast("ByteTokenizer", SimpleNamespace(**fields))


class Maps(NamedTuple):
    """The student's id of each of the teacher's, by both maps that go by bytes alone."""

    prefix: npt.NDArray[np.int32]
    exact: npt.NDArray[np.int32]


def prefix_map(teacher: ByteTokenizer, student: ByteTokenizer) -> Maps:
    """Make both maps of whole tokens."""
    made = (make_map(kind, teacher, student) for kind in ("prefix", "strict"))
    return Maps(*(each.event[: teacher.size] for each in made))


def by_definition(teacher: ByteTokenizer, student: ByteTokenizer) -> Maps:
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
        for found, into in ((twins, exact), (begins, prefix)):
            _, last, j = min(found, default=(0, False, -1))
            written = (student.token_bytes[j] or b"") if j >= 0 else b""
            into.append(-1 if last and written >= b"\x80" else j)
    return Maps(np.array(prefix, np.int32), np.array(exact, np.int32))


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


def test_a_standin_for_part_of_a_character_is_a_target_of_the_same_standin_only():
    student = vocabulary(b"x", b"\xd7", b"\n", standins=(1, 2))
    teacher = vocabulary(b"\xd7", b"\xd7\x90", b"\n")
    assert prefix_map(teacher, student).prefix.tolist() == [-1, -1, 2]
    with_standin = vocabulary(b"\xd7", b"\xd7\x90", b"\n", standins=(0,))
    assert prefix_map(with_standin, student).prefix.tolist() == [1, -1, 2]


def test_every_kind_of_map_can_be_asked_for():
    option = next(each for each in LOSS.options if each.name == "map")
    assert set(option.choices) == {*KINDS, "exact"}  # strict, but for which labels
