"""What ends a turn: one notion for teacher and student, template and tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.ends import THINKING, count_endless
from logitstore.text.template_ends import find_ends
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.shapes import SHAPES


def encoded(segments: list[Segment], *more: str) -> tuple[Any, Any]:
    tokenizer = templates.chatml()
    tokenizer.add_tokens(list(more))
    return tokenizer, ByteTokenizer(tokenizer).encode(segments, add_eos=False, add_prefix=False)


def ends(segments: list[Segment]) -> list[tuple[str, int]]:
    """(token, supervised bytes before it) of every end."""
    tokenizer, text = encoded(segments)
    names = tokenizer.convert_ids_to_tokens(text.token_ids[text.is_eos].tolist())
    return list(zip(names, text.byte_starts[text.is_eos].tolist(), strict=True))


def said(text: str, role: str = "assistant") -> Segment:
    return Segment(text, True, role)


def other(text: str) -> Segment:
    return Segment(text, False)


@pytest.mark.parametrize("space", ["", " ", "\n", " \n\t", "\u00a0"])
def test_white_space_may_stand_between_a_text_and_its_end(space: str) -> None:
    assert ends([other("q "), said("one"), other(f"{space}<|im_end|>\n")]) == [("<|im_end|>", 3)]


@pytest.mark.parametrize(
    "between", ["x", " .", "</answer>", "<|im_start|>", "\n<|im_start|>user\n"]
)
def test_whatever_else_stands_between_makes_it_another_turns_end(between: str) -> None:
    assert ends([said("one"), other(f"{between}<|im_end|>\n")]) == []


def test_an_end_within_what_is_said_ends_nothing() -> None:
    segments = [said("Say <|im_end|>"), other("<|im_end|>\n")]
    assert ends(segments) == [("<|im_end|>", 14)]
    # Not even if nothing but white space stands between that text and the one before it.
    assert ends([said("one"), other("\n"), said("<|im_end|> is it")]) == []


def test_one_token_ends_one_turn() -> None:
    assert ends([said("one"), other("\n\n"), said(""), other("<|im_end|>")]) == [("<|im_end|>", 3)]


def test_ends_of_other_families_are_text() -> None:
    assert ends([said("The token is "), other("</s>"), other("<|im_end|>")]) == []


def test_turns_without_an_end_are_counted_each() -> None:
    segments = [said("one"), other("\nQ: "), said("two"), other("<|im_end|>"), said("three")]
    _, text = encoded(segments)
    assert count_endless(segments, text.byte_starts, text.is_eos) == 2
    closed = [said("", "assistant"), other(" <|im_end|>"), said(""), other("\n")]
    _, text = encoded(closed)
    assert count_endless(closed, text.byte_starts, text.is_eos) == 1
    thought = [said("so", THINKING), other("</think>"), said("one"), other("<|im_end|>")]
    _, text = encoded(thought)
    assert count_endless(thought, text.byte_starts, text.is_eos) == 0


def test_ids_that_a_model_lists_are_ends_if_they_are_no_ordinary_text() -> None:
    tokenizer = templates.chatml()
    tokenizer.add_tokens([AddedToken("<|eom|>", special=False), AddedToken("\n\n", special=False)])
    reader = ByteTokenizer(tokenizer)
    listed = tokenizer.convert_tokens_to_ids(["<|eom|>", "\n\n", "e", "<|im_end|>"])
    assert reader.with_ends([*listed, 10**6]).eos_ids == (*reader.eos_ids, listed[0])
    assert reader.with_ends(listed[3:]) is reader
    segments = [said("one"), other("<|eom|>\n")]
    assert not reader.encode(segments, add_eos=False).is_eos.any()
    text = reader.with_ends(listed).encode(segments, add_eos=False)
    assert text.token_ids[text.is_eos].tolist() == listed[:1]
    assert text.byte_lengths[text.is_eos].tolist() == [0]
    assert reader.with_ends(listed).fingerprint == reader.fingerprint


def test_a_text_of_any_end_may_be_asked_for() -> None:
    reader = ByteTokenizer(tiny.byte_bpe())
    text = reader.encode([said("one")], end_id=5)
    assert (text.token_ids[-1], bool(text.is_eos[-1]), bool(text.has_record[-1])) == (5, True, True)
    assert reader.encode([said("one")], add_eos=False, end_id=5).token_ids[-1] != 5


def test_bos_begins_what_follows_and_ends_nothing() -> None:
    reader = ByteTokenizer(templates.mistral())
    assert find_ends(("<s>[INST] Q", "</s>"), reader) == ((reader.eos_token_id,), "")
    assert find_ends((" </s><s>[INST] Q", " </s>"), reader) == ((reader.eos_token_id,), "")
    assert find_ends(None, reader) == ((), "")
    assert find_ends(("\nUser: Q", "\n"), reader) == ((), "")


def test_a_template_tells_its_ends() -> None:
    for name, shape in SHAPES.items():
        tokenizer = shape.tokenizer()
        template = ChatTemplate.of(tokenizer, ByteTokenizer(tokenizer))
        found = {tokenizer.convert_ids_to_tokens(i) for i in template.end_ids}
        assert found == {shape.end[0], shape.end[2]} - {None}, name
        is_open = name == "ended by the next role"
        assert template.closing == ("<|user|>" if is_open else ""), name
        assert np.isin(ByteTokenizer(tokenizer).eos_token_id, [0, 1, 2])
