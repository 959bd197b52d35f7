"""Twelve shapes of chat templates, fifteen conversations, as teacher and as student.

Each cell supervises just what the assistant thought, says and calls, and the end of its turns; or
the row is refused by name.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from logitstore.errors import InputError
from logitstore.records import SequenceText
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation
from logitstore.text.ends import CALLS, THINKING, count_endless
from logitstore.text.student_turns import read_turns
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.text.turns import Piece, Rendering
from tests.kit.shapes import CALL, SHAPES, TALKS, Expected, expected

#: The teacher of every student, and the student of every teacher.
OTHER = "calls written"


@cache
def side(shape: str) -> tuple[Any, ByteTokenizer, ChatTemplate]:
    """The tokenizer of a shape, by bytes too, and its template; it knows the ends of both."""
    tokenizer = SHAPES[shape].tokenizer()
    listed = tokenizer.convert_tokens_to_ids(list(SHAPES[shape].listed))
    reader = ByteTokenizer(tokenizer).with_ends(listed)
    template = ChatTemplate.of(tokenizer, reader)
    return tokenizer, reader.with_ends(template.end_ids), template


def rendered(shape: str, talk: str) -> tuple[Rendering, TokenizedText]:
    _, reader, template = side(shape)
    found = template.render(Conversation.choose(TALKS[talk], "all"), f"row {talk}")
    return found, reader.encode(found.segments, add_eos=False, add_prefix=False)


def check_pieces(found: Rendering, wanted: Expected, ends: tuple[str, ...]) -> None:
    pieces = {piece.role: piece for piece in found.pieces if piece.message == wanted.message}
    said = {role: found.said(piece) for role, piece in pieces.items()}
    thought = said.pop(THINKING, None)
    assert (None if thought is None else thought.strip()) == wanted.thought
    calls = said.pop(CALLS, None)
    assert (calls is not None) == wanted.calls
    if calls is not None:
        arguments = json.dumps(CALL["function"]["arguments"])  # type: ignore[index]
        assert "add" in calls
        assert arguments in calls
        assert not any(end in calls for end in ends)
    assert said.pop("assistant", None) == wanted.said
    assert not said


def ends_of(shape: str, tokens: TokenizedText) -> list[str]:
    tokenizer = side(shape)[0]
    return list(tokenizer.convert_ids_to_tokens(tokens.token_ids[tokens.is_eos].tolist()))


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_teacher_supervises_what_was_said_and_its_end(shape: str, talk: str) -> None:
    tokenizer, _, template = side(shape)
    if talk in SHAPES[shape].refused:
        with pytest.raises(InputError, match=f"row {talk}: "):
            rendered(shape, talk)
        return
    found, tokens = rendered(shape, talk)
    wanted = expected(SHAPES[shape], TALKS[talk])
    left_out = [i for i, m in enumerate(TALKS[talk]) if m["role"] == "assistant"]
    assert found.unwritten == tuple(i for i in left_out if i not in {e.message for e in wanted})
    for each in wanted:
        check_pieces(found, each, template.ends)
    assert {piece.message for piece in found.pieces} <= {each.message for each in wanted}
    # One end a turn, the right one, behind the last byte of what it ends; and thoughts in channels.
    assert [e for e in ends_of(shape, tokens) if e] == [
        end
        for each in wanted
        for end in (["<|end|>"] * (shape == "channels" and each.thought is not None))
        + ([each.end] if each.end else [])
    ]
    assert tokens.has_record[tokens.is_eos].all()
    assert not tokens.byte_lengths[tokens.is_eos].any()
    missing = sum(each.end is None for each in wanted)
    assert count_endless(found.segments, tokens.byte_starts, tokens.is_eos) == missing
    # The rest of the records cover the supervised text, and what the model reads is its own text.
    assert tokens.byte_lengths.sum() == len("".join(map(found.said, found.pieces)).encode())
    # … behind nulls, of which it would write the word, and before the end that it leaves out.
    if talk != "a call":
        own = tokenizer.apply_chat_template(TALKS[talk], tokenize=False)
        assert found.text == own + (template.closing if shape == "ended by the next role" else "")


def line_of(found: Rendering, talk: str) -> SequenceText:
    messages = Conversation.choose(TALKS[talk], "all").to_json()
    return SequenceText(0, 0, "ok", found.segments, messages=messages)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_student_supervises_the_same_and_its_own_end(shape: str, talk: str) -> None:
    """The teacher's template is another, and so are its ends, and its white space."""
    theirs, their_tokens = rendered(OTHER, talk)
    _, reader, template = side(shape)
    line = line_of(theirs, talk)
    if talk in SHAPES[shape].refused:
        with pytest.raises(InputError, match="row 9: "):
            read_turns(line, {}, template, reader, "row 9")
        return
    read = read_turns(line, {}, template, reader, "row 9")
    assert read is not None
    wanted = expected(SHAPES[shape], TALKS[talk])
    own = line.supervised_bytes
    # Every label of a text is that text, at the teacher's own place.
    text = "".join(s.text for s in read.segments).encode()
    tokens = read.tokens
    for t in np.flatnonzero(tokens.has_record & ~tokens.is_eos):
        start, length = int(tokens.byte_starts[t]), int(tokens.byte_lengths[t])
        place = int(tokens.text_starts[t] + tokens.heads[t])
        assert own[start : start + length] == text[place : place + length]
    said = [s.text for s in read.segments if s.supervised and s.role == "assistant"]
    assert [text.strip() for text in said] == [
        each.said.strip() for each in wanted if each.said is not None
    ]
    # Each end stands where the teacher has the end of that turn.
    assert ends_of(shape, tokens) == [each.end for each in wanted if each.end]
    their_ends = their_tokens.byte_starts[their_tokens.is_eos].tolist()
    turns = [i for i, m in enumerate(TALKS[talk]) if m["role"] == "assistant"]
    at = dict(zip(turns, their_ends, strict=True))
    ends = tokens.byte_starts[tokens.is_eos].tolist()
    assert ends == [at[each.message] for each in wanted if each.end]


def test_pieces_are_never_of_the_users_text() -> None:
    """The same words on both sides: only the assistant's are supervised."""
    for shape, made in SHAPES.items():
        talk = [{"role": r, "content": "Yes."} for r in ("user", "assistant") * 2]
        _, _, template = side(shape)
        found = template.render(Conversation.choose(talk, "all"), "row 0")
        marked = [m | {"content": f"{i}."} for i, m in enumerate(talk)]
        other = template.render(Conversation.choose(marked, "all"), "row 0")
        assert [other.said(p) for p in other.pieces] == ["1.", "3."]
        shift = [Piece(p.start + 2 * p.message, 0, p.message, p.role) for p in other.pieces]
        assert [p.start for p in found.pieces] == [p.start for p in shift]
        assert made.end
